//! Settings: files and `--set`, and whether what is accepted survives being written.

use std::path::{Path, PathBuf};

use trainer::config::{COUNTDOWN, Config, Overrides, SIRI_1_5B};
use trainer::doctor;

use crate::target::{Random, Target, put, texts};

/// Settings.
pub fn config(folder: PathBuf) -> Target {
    let read = move |bytes: &[u8], random: &mut Random| {
        let path = folder.join("config.toml");
        put(&path, bytes);
        let text = String::from_utf8_lossy(bytes);
        let sets: Vec<String> = text.lines().take(random.below(3)).map(|line| line.replace(' ', "")).collect();
        for (file, sets) in [(Some(path.as_path()), &[][..]), (None, &sets[..])] {
            let Ok(config) = Config::resolve(file, sets, &Overrides::default()) else { continue };
            put(&path, config.to_toml().as_bytes());
            match Config::resolve(Some(&path), &[], &Overrides::default()) {
                Ok(again) if again == config => {}
                Ok(_) => return Err("settings that are others once they are written".into()),
                Err(error) => return Err(format!("settings that are refused once they are written: {error}")),
            }
            let _ = doctor::disk::Need::of(&shape(), &config);
        }
        Ok(())
    };
    let pieces = &[
        "[schedule]\n",
        "[model]\n",
        "=",
        "\"",
        "none",
        "nan",
        "-1",
        "1e400",
        "18446744073709551615",
        "[[0, 1]]",
        "{",
        "}",
        "embedded",
        "lora = { rank = 1, alpha = 1, targets = [] }\n",
        "\n",
        "#",
        "'''",
        "[",
        "]",
        ".",
        "0x",
        "1979-05-27",
    ];
    Target { name: "config", seeds: texts(&[COUNTDOWN, SIRI_1_5B]), pieces, read: Box::new(read) }
}

fn shape() -> model::Config {
    let files = model::embedded::files();
    model::Config::parse(&files.config, Path::new("config.json")).unwrap_or_else(|error| panic!("{error}"))
}
