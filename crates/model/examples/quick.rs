use candle_core::{DType, Device};
use model::config::Config;
use model::decode::{Decoder, Span};
use model::qwen2::{PackedBatch, Qwen2};
use rayon::prelude::*;
use std::path::Path;
fn cpu() -> f64 {
    let s = std::fs::read_to_string("/proc/self/stat").unwrap();
    let f: Vec<&str> = s.rsplit(')').next().unwrap().split_whitespace().collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}
fn main() {
    let text = r#"{"model_type": "qwen2", "vocab_size": 96, "hidden_size": 128, "intermediate_size": 384,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 1024, "tie_word_embeddings": true}"#;
    let config = Config::parse(&text, Path::new("config.json")).unwrap();
    let model = model::init::random(config, 0.05, 7, DType::F32, &Device::Cpu).unwrap();
    for _ in 0..2 {
        let t = cpu();
        let decoder = Decoder::pack(&model).unwrap();
        println!("pack {:?}", cpu() - t);
        let rows: usize = std::env::args().nth(1).map(|s| s.parse().unwrap()).unwrap_or(192);
        let new = 256;
        let mut cache = decoder.cache(rows, 448);
        let t = cpu();
        let prompt: Vec<u32> = (0..16).collect();
        for i in 0..new {
            let spans = cache
                .slots_mut()
                .iter_mut()
                .map(|slot| Span { tokens: if i == 0 { &prompt } else { &prompt[..1] }.into(), slot });
            decoder.step(spans.collect(), |_, l| l[0]).unwrap();
        }
        println!("decode {:.0} tok per CPU second", (rows * new) as f64 / (cpu() - t));
        let seqs: Vec<Vec<u32>> = (0..64).map(|s| (0..(100 + s * 4)).map(|i| (i * 7 + s) % 96).collect()).collect();
        let t = cpu();
        let total: usize = seqs.iter().map(|s| s.len()).sum();
        seqs.par_chunks(8).for_each(|c| {
            let b = PackedBatch::new(c.iter().map(|s| (s.as_slice(), 16)));
            let s = model.scores(&b, 1.0).unwrap();
            let _g = s.log_probs.sum_all().unwrap().backward().unwrap();
        });
        println!("train {:.0} tok per CPU second", total as f64 / (cpu() - t));
        let t = cpu();
        let d = model.detached();
        seqs.par_chunks(8).for_each(|c| {
            let b = PackedBatch::new(c.iter().map(|s| (s.as_slice(), 16)));
            let _s = d.scores(&b, 1.0).unwrap();
        });
        println!("score {:.0} tok per CPU second", total as f64 / (cpu() - t));
    }
}
