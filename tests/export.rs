//! `trainer export`: the same policy, in the type that was asked for, with nothing rounded twice.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use model::lora::{self, Saved, Settings};
use model::{Files, weights};
use serde_json::{Value, json};

use crate::commands::{output, random_policy, rows};
use crate::program::{refusal, write};

#[test]
fn an_export_is_the_same_policy() {
    let folder = tempfile::tempdir().unwrap();
    let path = random_policy(&folder);
    let exported = |name: &str, dtype: &[&str]| {
        let out = folder.path().join(name).to_str().unwrap().to_owned();
        output(&[&["export", &path, &out], dtype].concat());
        out
    };
    let (full, half) = (exported("full", &["--dtype", "f32"]), exported("half", &[]));
    let file = write(&folder, "rows.jsonl", r#"{"prompt_ids":[2,8,9],"response_ids":[10,11,12,13]}"#);
    let score = |model: &str| output(&["score", "--model", model, "--data", &file]);
    // Not to the bit: the embedded policy's exact angles are rounded as others round them.
    let log_probs =
        |printed: &str| -> Vec<f64> { serde_json::from_value(rows(printed)[0]["logprobs"].clone()).unwrap() };
    let gap = |a: &str, b: &str| {
        let (a, b) = (log_probs(&score(a)), log_probs(&score(b)));
        a.iter().zip(&b).fold(0f64, |worst, (a, b)| worst.max((a - b).abs()))
    };
    assert!(gap(&full, &path) < 1e-6);
    assert!(gap(&half, &path) > 1e-4, "bf16 has rounded");
    for (out, name, dtype) in [(&full, "float32", DType::F32), (&half, "bfloat16", DType::BF16)] {
        let out = Path::new(out);
        let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
        assert_eq!((&config["torch_dtype"], &config["model_type"]), (&json!(name), &json!("qwen2")));
        assert!(config.get("rope_angles").is_none(), "a key that transformers passes over");
        let tensors = candle_core::safetensors::load(out.join("model.safetensors"), &Device::Cpu).unwrap();
        assert!(tensors.values().all(|tensor| tensor.dtype() == dtype));
        for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"] {
            assert_eq!(fs::read(out.join(name)).unwrap(), fs::read(Path::new(&path).join(name)).unwrap(), "{name}");
        }
    }
    let message = refusal(&["export", &path, &half], 2);
    assert!(message.contains(&format!("{half}: the folder is not empty")), "{message}");
    let message = refusal(&["export", &path, &file], 2);
    assert!(message.contains("not a folder"), "{message}");
}

#[cfg(unix)]
#[test]
fn whoever_may_read_an_export_may_read_its_weights() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = random_policy(&folder);
    let mode = |name: &str| fs::metadata(Path::new(&path).join(name)).unwrap().permissions().mode();
    assert_eq!(mode("model.safetensors"), mode("config.json"));
}

/// Adapters of every projection of the policy in `base`, none of them zero, in a folder.
fn adapters(base: &str, folder: &Path) {
    let files = Files::open(&base.parse().unwrap()).unwrap();
    let settings = Settings { rank: 3, alpha: 6.0, targets: lora::TARGETS.map(String::from).to_vec() };
    let model = weights::load(&files, DType::F32, &Device::Cpu).unwrap().with_adapters(settings, 7).unwrap();
    for (at, (_, variable)) in model.variables().iter().enumerate() {
        let values: Vec<f32> = (0..variable.elem_count()).map(|i| ((i * 31 + at) as f32 * 0.7).sin() * 0.1).collect();
        variable.set(&Tensor::from_vec(values, variable.dims(), &Device::Cpu).unwrap()).unwrap();
    }
    fs::create_dir(folder).unwrap();
    lora::save(&model, base, folder).unwrap();
}

#[test]
fn merged_adapters_are_rounded_once() {
    let folder = tempfile::tempdir().unwrap();
    let plain = random_policy(&folder);
    // The same weights as bf16: what they are loaded in then is their own type.
    let half = folder.path().join("half").to_str().unwrap().to_owned();
    output(&["export", &plain, &half]);
    for (name, base) in [("plain", &plain), ("half", &half)] {
        let adapted = folder.path().join(format!("{name}-adapters"));
        adapters(base, &adapted);
        let files = Files::open(&base.parse().unwrap()).unwrap();
        let model = weights::load(&files, DType::F32, &Device::Cpu).unwrap();
        let model = model.with_saved_adapters(Saved::open(&adapted).unwrap()).unwrap();
        let merged: HashMap<String, Tensor> =
            model.merged().map(|tensor| tensor.unwrap()).map(|(name, tensor)| (name.to_owned(), tensor)).collect();
        for (dtype, asked) in [(DType::F32, "f32"), (DType::BF16, "bf16")] {
            let out = folder.path().join(format!("{name}-{asked}"));
            output(&["export", adapted.to_str().unwrap(), out.to_str().unwrap(), "--dtype", asked]);
            let exported = candle_core::safetensors::load(out.join("model.safetensors"), &Device::Cpu).unwrap();
            assert_eq!(exported.len(), merged.len());
            let numbers = |tensor: &Tensor| -> Vec<u32> {
                let values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                values.into_iter().map(f32::to_bits).collect()
            };
            for (tensor, exact) in &merged {
                let once = exact.to_dtype(dtype).unwrap();
                assert_eq!(exported[tensor].dtype(), dtype, "{tensor}");
                assert!(numbers(&exported[tensor]) == numbers(&once), "{name} as {asked}: {tensor} is rounded twice");
            }
        }
    }
}
