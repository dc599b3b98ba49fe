//! Prompts and their tokens against transformers, over templates of our own; `scripts/text_fixtures.py` made the file. And
//! where templates, special tokens and stop tokens are read from.

use model::{Files, Text, embedded};
use serde_json::{Value, json};

/// The embedded policy's files with other settings around its tokenizer.
fn files(tokenizer_config: Value, generation_config: Value) -> Files {
    Files {
        chat_template: None,
        tokenizer_config: Some(tokenizer_config.to_string()),
        generation_config: Some(generation_config.to_string()),
        ..embedded::files()
    }
}

fn text(tokenizer_config: Value, generation_config: Value) -> Text {
    Text::new(&files(tokenizer_config, generation_config)).unwrap()
}

#[test]
fn prompts_and_tokens_are_those_of_transformers() {
    let fixture: Value = serde_json::from_str(include_str!("data/prompts.json")).unwrap();
    let rows = fixture["rows"].as_array().unwrap();
    assert!(rows.len() > 20);
    for row in rows {
        let mut settings = fixture["special"].clone();
        settings["chat_template"] = fixture["templates"][row["name"].as_str().unwrap()].clone();
        let text = text(settings, Value::Null);
        let message = row["text"].as_str().unwrap();
        assert_eq!(text.render(message).unwrap(), row["prompt"].as_str().unwrap(), "{row}");
        assert_eq!(json!(text.prompt(message).unwrap()), row["ids"], "{row}");
        if message.is_empty() {
            assert_eq!(text.opens_thought().unwrap(), row["opens_thought"], "{row}");
        }
    }
}

#[test]
fn a_template_is_text_a_file_or_the_default_of_a_list() {
    let named = json!({"chat_template": [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "{{ messages[0].content }}!"}
    ]});
    assert_eq!(text(named.clone(), Value::Null).render("a").unwrap(), "a!");
    let file = Files { chat_template: Some("file".into()), ..files(named, Value::Null) };
    assert_eq!(Text::new(&file).unwrap().render("a").unwrap(), "file");
    assert_eq!(text(json!({"chat_template": null}), Value::Null).render("a").unwrap(), "a");
    for wrong in [json!(7), json!([{"name": "tool_use", "template": "tools"}])] {
        let error = Text::new(&files(json!({"chat_template": wrong}), Value::Null)).err().unwrap().to_string();
        assert!(error.contains("tokenizer_config.json: chat_template"), "{error}");
    }
}

#[test]
fn every_token_that_ends_a_response_is_known() {
    let stop = |tokenizer: Value, generation: Value| text(tokenizer, generation).stop_tokens().to_vec();
    assert_eq!(stop(json!({}), json!({"eos_token_id": [3, 1]})), [3, 1]);
    assert_eq!(stop(json!({}), json!({"eos_token_id": 3})), [3]);
    assert_eq!(stop(json!({}), json!({})), [1], "config.json's");
    assert_eq!(stop(json!({"eos_token": "<|user|>"}), json!({"eos_token_id": [3, 1]})), [3, 1, 2]);
    assert_eq!(stop(json!({"eos_token": {"content": "<|end|>"}}), json!({"eos_token_id": [3, 1]})), [3, 1]);
}

#[test]
fn a_template_that_refuses_or_is_broken_is_one_clear_error() {
    let message =
        |template: &str| text(json!({"chat_template": template}), Value::Null).render("a").unwrap_err().to_string();
    assert!(message("{{ raise_exception('roles must alternate') }}").contains("roles must alternate"));
    for broken in ["{% if %}", "{{ messages[", "{{ nothing.at.all }}", "{{ 'a'.no_such_method() }}"] {
        let message = message(broken);
        assert!(message.starts_with("chat template: ") && !message.contains('\n'), "{message}");
    }
}
