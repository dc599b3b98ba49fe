//! The embedded policy's tokenizer reads and writes the Countdown task without loss.

use tokenizers::Tokenizer;
use trainer::data::countdown::{Split, problem};
use trainer::data::rng::Rng;
use trainer::data::traces::{TraceStyle, trace};

const TOKENIZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../model/embedded/tokenizer.json");

fn tokenizer() -> Tokenizer {
    Tokenizer::from_file(TOKENIZER).expect("the embedded tokenizer loads")
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, false).expect("any text encodes").get_ids().to_vec()
}

#[test]
fn a_line_is_seventeen_tokens() {
    let tokenizer = tokenizer();
    let line = tokenizer.encode("12-7=5, 5*3=15 vs 19 no\n", false).unwrap();
    let expected = ["1", "2", "-", "7", "=", "5", ", ", "5", "*", "3", "=", "1", "5", " vs ", "1", "9", " no\n"];
    assert_eq!(line.get_tokens(), expected);
}

#[test]
fn a_prompt_and_an_answer_are_read_word_by_word() {
    let tokenizer = tokenizer();
    let prompt = tokenizer.encode("<|user|>Make 19 from 3, 12.<|assistant|><think>\n", false).unwrap();
    let expected = ["<|user|>", "Make ", "1", "9", " from ", "3", ", ", "1", "2", ".", "<|assistant|>", "<think>\n"];
    assert_eq!(prompt.get_tokens(), expected);
    let answer = tokenizer.encode(" yes\nwait </think>\n\\boxed{(9-4)/5}<|end|>", false).unwrap();
    let expected = [" yes\n", "wait ", "</think>\n", "\\boxed{", "(", "9", "-", "4", ")", "/", "5", "}", "<|end|>"];
    assert_eq!(answer.get_tokens(), expected);
}

#[test]
fn traces_round_trip_without_an_unknown_token() {
    let tokenizer = tokenizer();
    let unknown = tokenizer.token_to_id("<|unk|>").unwrap();
    for index in 0..1_000 {
        let problem = problem(11, index, Split::Train);
        let response = trace(&problem, &TraceStyle::default(), &mut Rng::keyed(&[11, index]));
        let text = format!("<|user|>{}<|assistant|><think>\n{response}<|end|>", problem.prompt());
        let ids = ids(&tokenizer, &text);
        assert!(!ids.contains(&unknown), "{text}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
}

#[test]
fn printable_ascii_round_trips_and_the_rest_is_unknown() {
    let tokenizer = tokenizer();
    let text: String = (' '..='~').chain(['\n', '\t']).collect();
    let spaced = format!(" What  is {text} ?\n");
    assert_eq!(tokenizer.decode(&ids(&tokenizer, &spaced), false).unwrap(), spaced);
    let unknown = tokenizer.token_to_id("<|unk|>").unwrap();
    // One for each of its two bytes.
    assert_eq!(ids(&tokenizer, "é"), [unknown; 2]);
}

#[test]
fn decoding_skips_special_tokens_but_keeps_the_words() {
    let tokenizer = tokenizer();
    let ids = ids(&tokenizer, "<think>\n4*5=20 vs 20 yes\n</think>\n\\boxed{4*5}<|end|><|pad|>");
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "<think>\n4*5=20 vs 20 yes\n</think>\n\\boxed{4*5}");
}

#[test]
fn the_configuration_agrees_with_the_tokenizer() {
    let tokenizer = tokenizer();
    let read = |name: &str| -> serde_json::Value {
        let path = std::path::Path::new(TOKENIZER).with_file_name(name);
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    let config = read("config.json");
    let rows = config["vocab_size"].as_u64().unwrap();
    assert_eq!(rows % 16, 0);
    assert!(tokenizer.get_vocab_size(true) as u64 <= rows);
    assert!(tokenizer.get_vocab(true).values().all(|&id| u64::from(id) < rows));
    for file in ["config.json", "generation_config.json"] {
        assert_eq!(read(file)["eos_token_id"], tokenizer.token_to_id("<|end|>").unwrap(), "{file}");
        assert_eq!(read(file)["pad_token_id"], tokenizer.token_to_id("<|pad|>").unwrap(), "{file}");
    }
}
