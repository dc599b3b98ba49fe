//! Every class of refusal, and the built-in files.

use std::path::PathBuf;

use super::*;

fn sets(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

fn resolve(texts: &[&str]) -> Result<Config, ConfigError> {
    Config::resolve(None, &sets(texts), &Overrides::default())
}

/// The message of what `texts` of `--set` make, which has to be one line.
fn refusal(texts: &[&str]) -> String {
    let message = resolve(texts).expect_err("these settings are nonsense").to_string();
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

#[test]
fn the_built_in_files_resolve() {
    let countdown = Config::countdown();
    assert_eq!((countdown.schedule.cycles, countdown.schedule.cycle_steps), (3, 28));
    assert_eq!((countdown.schedule.l_max, countdown.schedule.l_min), (448, 128));
    assert_eq!((countdown.sampler.prompts_per_step, countdown.sampler.group_size), (32, 8));
    assert_eq!(countdown.optimizer.learning_rate, 2e-4);

    let (_folder, path) = file(SIRI_1_5B);
    let siri = Config::resolve(Some(&path), &[], &Overrides::default()).unwrap();
    assert_eq!((siri.schedule.l_max, siri.schedule.l_min, siri.schedule.cycle_steps), (16384, 8192, 640));
    assert_eq!((siri.sampler.prompts_per_step, siri.optimizer.learning_rate), (128, 1e-6));
    assert_eq!(siri.sampler.cache_bytes(), Some(32 << 30));

    SftConfig::resolve(None, &[], &Overrides::default()).unwrap();
}

/// A key left out of a built-in file would be a default that stands nowhere.
#[test]
fn the_built_in_files_spell_every_key_out() {
    fn keys(text: &str) -> Vec<String> {
        let table: toml::Table = text.parse().unwrap();
        let mut keys = Vec::new();
        for (section, inner) in &table {
            keys.extend(inner.as_table().unwrap().keys().map(|key| format!("{section}.{key}")));
        }
        keys.sort();
        keys
    }
    let written = keys(&Config::countdown().to_toml());
    assert_eq!(keys(COUNTDOWN), written);
    assert_eq!(keys(SIRI_1_5B), written);
    let sft = SftConfig::resolve(None, &[], &Overrides::default()).unwrap();
    assert_eq!(keys(COUNTDOWN_SFT), keys(&sft.to_toml()));
}

#[test]
fn what_is_written_resolves_to_the_same() {
    let lora = "model.lora={ rank = 8, alpha = 16, targets = ['q_proj'] }";
    let set = ["run.out=runs/a b", lora, "loss.dual_clip=3", "optimizer.learning_rate=1e-6", "run.threads=2"];
    let config = resolve(&set).unwrap();
    let text = config.to_toml();
    assert!(text.starts_with("# As resolved by trainer "), "{text}");
    let (_folder, path) = file(&text);
    assert_eq!(Config::resolve(Some(&path), &[], &Overrides::default()).unwrap(), config);

    let sft = SftConfig::resolve(None, &sets(&["data.traces.after_success=[0, 1]"]), &Overrides::default()).unwrap();
    let (_folder, path) = file(&sft.to_toml());
    assert_eq!(SftConfig::resolve(Some(&path), &[], &Overrides::default()).unwrap(), sft);
}

#[test]
fn later_layers_win() {
    let (_folder, path) = file("[schedule]\ncycles = 5\ncycle_steps = 10\nl_max = 400\n[run]\nseed = 9");
    let set = sets(&["schedule.cycles=6", "schedule.cycle_steps=11", "schedule.cycle_steps=12"]);
    let overrides = Overrides { cycles: Some(7), out: Some("here".into()), ..Overrides::default() };
    let config = Config::resolve(Some(&path), &set, &overrides).unwrap();
    assert_eq!(config.schedule.cycles, 7, "the flag");
    assert_eq!(config.schedule.cycle_steps, 12, "the last --set");
    assert_eq!((config.schedule.l_max, config.run.seed), (400, 9), "the file");
    assert_eq!(config.schedule.l_min, 128, "the built-in file");
    assert_eq!(config.run.out, Some("here".into()));
}

#[test]
fn a_file_for_another_model_fills_over_the_papers_settings() {
    let (_folder, path) = file("model.path = 'org/name'\n");
    let config = Config::resolve(Some(&path), &[], &Overrides::default()).unwrap();
    assert_eq!((config.optimizer.learning_rate, config.schedule.l_max), (1e-6, 16384));
    let (_folder, path) = file("run.seed = 4\n");
    let config = Config::resolve(Some(&path), &[], &Overrides::default()).unwrap();
    assert_eq!((config.optimizer.learning_rate, config.schedule.l_max), (2e-4, 448));
}

#[test]
fn values_are_toml_or_bare_words() {
    let config = resolve(&[
        "model.path=Qwen/Qwen2.5-0.5B",
        "schedule.kind=staged",
        "schedule.stages=[[0, 192], [24, 448]]",
        "optimizer.learning_rate=1",
        "reward.outlier_truncation=true",
        "evaluate.max_tokens=100",
        "sampler.cache_memory=1.5 GiB",
    ])
    .unwrap();
    assert_eq!(config.model.path, "Qwen/Qwen2.5-0.5B");
    assert_eq!(config.schedule.stages, [(0, 192), (24, 448)]);
    assert_eq!(config.optimizer.learning_rate, 1.0, "a whole number is a number");
    assert!(config.reward.outlier_truncation);
    assert_eq!(config.sampler.cache_bytes(), Some(3 << 29));
    let off = resolve(&["evaluate.max_tokens=100", "evaluate.max_tokens=none"]).unwrap();
    assert_eq!(off.evaluate.max_tokens, None);
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest() {
    for (set, key, meant) in [
        ("sampler.grup_size=8", "sampler.grup_size", "did you mean `sampler.group_size`?"),
        ("smapler.group_size=8", "smapler", "did you mean `sampler`?"),
        ("cycles=3", "cycles", "did you mean `schedule.cycles`?"),
        ("lr=1e-4", "lr", "the sections are run, model"),
        ("optimizer.seed=1", "optimizer.seed", "did you mean `run.seed`?"),
        ("optimizer.lr=1", "optimizer.lr", "[optimizer] has learning_rate, "),
        ("shedule.lmax=1", "shedule", "did you mean `schedule`?"),
        ("loss.zzzzzzzz=1", "loss.zzzzzzzz", "[loss] has clip_low, clip_high"),
        ("model.lora={ rnk = 1 }", "model.lora.rnk", "did you mean `model.lora.rank`?"),
    ] {
        let message = refusal(&[set]);
        assert!(message.starts_with(&format!("--set: unknown key `{key}`; ")), "{message}");
        assert!(message.contains(meant), "{set}: {message}");
    }
}

#[test]
fn a_file_is_named_with_its_key() {
    let (_folder, path) = file("[schedule]\ncycels = 3\n");
    let message = Config::resolve(Some(&path), &[], &Overrides::default()).unwrap_err().to_string();
    assert_eq!(message, format!("{}: unknown key `schedule.cycels`; did you mean `schedule.cycles`?", path.display()));
    let (_folder, path) = file("[sampler]\ngroup_size = \"eight\"\n");
    let message = Config::resolve(Some(&path), &[], &Overrides::default()).unwrap_err().to_string();
    assert_eq!(
        message,
        format!("{}: sampler.group_size = \"eight\": must be a whole number, 0 or more", path.display())
    );
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_its_line() {
    let (_folder, path) = file("[run]\nseed = 1\nout = = 3\n");
    let message = Config::resolve(Some(&path), &[], &Overrides::default()).unwrap_err().to_string();
    assert!(message.contains("run.toml:3: not valid TOML: "), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
}

#[test]
fn a_file_that_is_not_there_is_refused_by_name() {
    let missing = PathBuf::from("no/such/file.toml");
    let message = Config::resolve(Some(&missing), &[], &Overrides::default()).unwrap_err().to_string();
    assert!(message.starts_with("no/such/file.toml: cannot read"), "{message}");
}

#[test]
fn a_set_that_is_no_setting_is_refused() {
    for (set, problem) in [
        ("schedule.cycles", "there is no `=`"),
        ("=3", "the key has to be words joined by dots"),
        ("run..seed=3", "the key has to be words joined by dots"),
        ("run.seed=", "there is no value"),
        ("schedule.stages=[[0, 1]", "the value is not TOML"),
    ] {
        let message = refusal(&[set]);
        assert!(message.starts_with(&format!("--set {set}: {problem}")), "{message}");
        assert!(message.contains("write --set section.key=value"), "{message}");
    }
}

#[test]
fn a_value_of_the_wrong_type_is_refused() {
    for (set, message) in [
        ("run.seed=abc", "run.seed = \"abc\": must be a whole number, 0 or more"),
        ("run.seed=-1", "run.seed = -1: must be a whole number, 0 or more"),
        ("schedule.cycles=1.5", "schedule.cycles = 1.5: must be a whole number, 0 or more"),
        ("schedule.cycles=true", "schedule.cycles = true: must be a whole number, 0 or more"),
        ("loss.clip_low=low", "loss.clip_low = \"low\": must be a number"),
        ("reward.outlier_truncation=yes", "reward.outlier_truncation = \"yes\": must be true or false"),
        ("data.train=3", "data.train = 3: must be a string"),
        ("loss.dual_clip=off", "loss.dual_clip = \"off\": must be a number"),
        ("schedule=3", "schedule = 3: must be a section, such as { key = value }"),
        ("schedule.stages=[[0]]", "schedule.stages[0] = [[0]]: must be a pair such as [0, 448]"),
        ("schedule.stages=[[0, 1, 2]]", "schedule.stages[0] = [[0, 1, 2]]: must have 2 values, no more"),
        ("schedule.stages=[[0, \"a\"]]", "schedule.stages[0][1] = [[0, \"a\"]]: must be a whole number, 0 or more"),
        (
            "loss.aggregation=tokens",
            "loss.aggregation = \"tokens\": must be one of token, sequence, constant; did you mean \"token\"?",
        ),
        (
            "optimizer.decay=linaer",
            "optimizer.decay = \"linaer\": must be one of constant, linear, cosine; did you mean \"linear\"?",
        ),
        ("model.lora={ rank = 3 }", "model.lora = { rank = 3 }: must also have `alpha`"),
        ("run.device=1", "run.device = 1: must be one of auto, cpu, cuda, metal"),
    ] {
        assert_eq!(refusal(&[set]), format!("--set: {message}"));
    }
}

#[test]
fn a_value_out_of_range_is_refused() {
    for set in [
        "run.threads=0",
        "run.out=''",
        "model.path=''",
        "model.micro_batch_tokens=0",
        "model.lora={ rank = 0, alpha = 1, targets = ['q_proj'] }",
        "model.lora={ rank = 1, alpha = 0, targets = ['q_proj'] }",
        "model.lora={ rank = 1, alpha = 1, targets = ['qproj'] }",
        "model.lora={ rank = 1, alpha = 1, targets = [] }",
        "reference.kl_beta=-1",
        "reference.track=1.5",
        "data.train=''",
        "data.eval=countdwon",
        "data.max_prompt_tokens=0",
        "schedule.cycles=0",
        "schedule.cycle_steps=0",
        "schedule.cycle_steps=99999999999",
        "schedule.l_min=0",
        "sampler.prompts_per_step=0",
        "sampler.group_size=1",
        "sampler.group_size=9223372036854775807",
        "model.micro_batch_tokens=9223372036854775807",
        "optimizer.warmup_steps=9223372036854775807",
        "sampler.temperature=0",
        "sampler.temperature=nan",
        "sampler.top_p=0",
        "sampler.top_p=1.1",
        "sampler.stop=[\"</answer>\", \"\"]",
        "sampler.max_rows=0",
        "sampler.cache_memory=4 horses",
        "sampler.cache_memory=0GiB",
        "reward.verifier=maths",
        "loss.clip_low=2",
        "loss.clip_high=inf",
        "loss.dual_clip=1",
        "loss.entropy_bonus=nan",
        "loss.importance_cap=0",
        "optimizer.learning_rate=0",
        "optimizer.learning_rate=nan",
        "optimizer.weight_decay=-0.1",
        "optimizer.beta1=1",
        "optimizer.beta2=-0.5",
        "optimizer.epsilon=0",
        "optimizer.max_grad_norm=0",
        "optimizer.updates_per_step=0",
        "evaluate.problems=0",
        "evaluate.samples=0",
        "evaluate.temperature=-1",
        "evaluate.top_p=0",
        "evaluate.max_tokens=0",
        "checkpoint.keep=0",
    ] {
        let key = set.split('=').next().unwrap();
        let message = refusal(&[set]);
        assert!(message.starts_with(&format!("--set: {key}")), "{set}: {message}");
        assert!(message.contains(": must "), "{set}: {message}");
    }
}

/// Of two keys that contradict each other the one that the user wrote is named.
#[test]
fn keys_that_contradict_each_other_are_refused() {
    for (set, message) in [
        ("schedule.l_min=449", "schedule.l_min = 449: l_min (449) must not be above l_max (448)"),
        ("schedule.l_max=100", "schedule.l_max = 100: l_min (128) must not be above l_max (100)"),
        ("reference.kl_beta=0.1", "reference.kl_beta = 0.1: a KL penalty"),
        ("optimizer.updates_per_step=33", "optimizer.updates_per_step = 33: 33 updates cannot share the 32 groups"),
        ("sampler.prompts_per_step=0", "sampler.prompts_per_step = 0: must be at least 1"),
        (
            "optimizer.warmup_steps=84",
            "optimizer.warmup_steps = 84: a warm-up of 84 updates leaves none of the run's 84",
        ),
        ("schedule.kind=staged", "schedule.kind = \"staged\": schedule.stages = []: kind = \"staged\" needs"),
        ("schedule.stages=[[0, 8]]", "schedule.stages = [[0, 8]]: schedule.stages has 1 entries: only kind"),
    ] {
        let found = refusal(&[set]);
        assert!(found.starts_with(&format!("--set: {message}")), "{found}");
    }
    assert!(resolve(&["reference.kl_beta=0.1", "reference.track=1"]).is_ok());
    assert!(resolve(&["optimizer.warmup_steps=84", "optimizer.decay=constant"]).is_ok());
    assert!(resolve(&["schedule.kind=constant", "schedule.l_max=100"]).is_ok(), "a constant budget reads no l_min");
}

#[test]
fn flags_are_named_by_their_own_name() {
    let overrides = Overrides { cycles: Some(0), ..Overrides::default() };
    let message = Config::resolve(None, &[], &overrides).unwrap_err().to_string();
    assert_eq!(message, "--cycles: schedule.cycles = 0: must be at least 1");
    let overrides = Overrides { seed: Some(u64::MAX), ..Overrides::default() };
    let message = Config::resolve(None, &[], &overrides).unwrap_err().to_string();
    assert!(message.starts_with("--seed: run.seed = "), "{message}");
}

#[test]
fn warm_start_settings_are_checked_too() {
    for (set, message) in [
        ("data.traces.recheck=2", "data.traces.recheck = 2: must be a probability"),
        ("data.traces.after_success=[3, 1]", "data.traces.after_success = [3, 1]: the first number"),
        ("train.batch_tokens=10", "train.batch_tokens = 10: an update of 10 tokens"),
        ("train.tokens=10", "train.tokens = 10: 10 tokens do not fill"),
        ("train.tokens=100000", "train.tokens = 100000: a warm-up of 40 updates leaves none of the 13"),
        ("train.warmup_steps=1465", "train.warmup_steps = 1465: a warm-up of 1465 updates leaves none of the 1465"),
        ("train.max_length=0", "train.max_length = 0: must be at least 1"),
        ("model.init_std=0", "model.init_std = 0: must be a finite number above 0"),
        ("data.kind=sums", "data.kind = \"sums\": must be one of countdown"),
    ] {
        let found = SftConfig::resolve(None, &sets(&[set]), &Overrides::default()).unwrap_err().to_string();
        assert!(found.starts_with(&format!("--set: {message}")), "{found}");
    }
    let found = SftConfig::resolve(None, &sets(&["data.traces.rechek=0"]), &Overrides::default()).unwrap_err();
    assert!(found.to_string().ends_with("did you mean `data.traces.recheck`?"), "{found}");
    let overrides = Overrides { cycles: Some(3), ..Overrides::default() };
    assert!(SftConfig::resolve(None, &[], &overrides).is_err(), "a warm start has no cycles");
}

#[test]
fn sizes_are_read_by_their_unit() {
    assert_eq!(bytes("1KiB"), Some(1024));
    assert_eq!(bytes("2 MB"), Some(2_000_000));
    assert_eq!(bytes("0.5GiB"), Some(1 << 29));
    for nonsense in ["", "GiB", "4", "4 gigs", "-1GiB", "1.2.3GiB"] {
        assert_eq!(bytes(nonsense), None, "{nonsense}");
    }
}
