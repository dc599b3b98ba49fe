//! Layers of settings merged into one table that remembers where each value came from.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::error::{ConfigError, Origin};
use super::ranges::Violation;
use super::value::{Keyed, Problem, ValueError, join, nearest};

/// The merged table.
pub(super) struct Layers {
    table: Table,
    /// The built-in file alone.
    built_in: Table,
    /// Every key of the built-in file, with its section.
    known: Vec<String>,
    origins: BTreeMap<String, Origin>,
    base: Origin,
}

impl Layers {
    /// Starts from a file that is compiled in and spells every key out.
    ///
    /// # Errors
    /// If `text` is not TOML, which the tests rule out.
    pub(super) fn built_in(name: &'static str, text: &str) -> Result<Self, ConfigError> {
        let table = parse(Path::new(name), text)?;
        let mut known = Vec::new();
        leaves("", &table, &mut |key, _| known.push(key));
        Ok(Self { built_in: table.clone(), table, known, origins: BTreeMap::new(), base: Origin::BuiltIn(name) })
    }

    /// Lays `table` over what is there, key by key.
    pub(super) fn fill(&mut self, table: Table, origin: Origin) {
        leaves("", &table, &mut |key, _| {
            self.origins.insert(key, origin.clone());
        });
        merge(&mut self.table, table);
    }

    /// The settings as their type, checked.
    ///
    /// # Errors
    /// All of what is wrong: a key that is refused is put aside, or takes its built-in value, to see what else is.
    pub(super) fn settle<T: DeserializeOwned>(
        &self,
        check: impl Fn(&T) -> Result<(), Vec<Violation>>,
    ) -> Result<T, ConfigError> {
        let (mut table, mut errors, mut refused) = (self.table.clone(), Vec::new(), Vec::new());
        let settings = loop {
            let whole = Keyed { key: String::new(), value: Value::Table(table.clone()) };
            match T::deserialize(whole) {
                Ok(settings) => break settings,
                Err(error) => {
                    let key = error.key.split('[').next().unwrap_or_default().to_string();
                    errors.push(self.explain(error));
                    if !reset(&mut table, &self.built_in, &key) {
                        return Err(ConfigError::Several(errors).or_only());
                    }
                    refused.push(key);
                }
            }
        };
        let depends = |violation: &Violation| {
            violation.keys.iter().any(|key| refused.iter().any(|refused| key.starts_with(refused.as_str())))
        };
        let violations = check(&settings).err().unwrap_or_default();
        errors.extend(violations.into_iter().filter(|violation| !depends(violation)).map(|found| self.refuse(found)));
        ConfigError::all(errors)?;
        Ok(settings)
    }

    /// A value that has the right type and is out of range.
    fn refuse(&self, violation: Violation) -> ConfigError {
        // Of two keys that contradict each other, the one that the user wrote last is to blame.
        let key = violation.keys.iter().copied().max_by_key(|key| self.origin(key).rank()).unwrap_or_default();
        ConfigError::Value {
            origin: self.origin(key),
            key: key.to_string(),
            value: self.shown(key),
            problem: violation.problem,
        }
    }

    fn explain(&self, ValueError { key, problem }: ValueError) -> ConfigError {
        let origin = self.origin(&key);
        match problem {
            Problem::Unknown { known } => ConfigError::UnknownKey { hint: self.hint(&key, known), origin, key },
            Problem::Unfit(problem) => ConfigError::Value { value: self.shown(&key), origin, key, problem },
        }
    }

    /// What a key that does not exist was probably meant to be. `siblings`: the keys of its section.
    fn hint(&self, key: &str, siblings: &[&str]) -> String {
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        let last = |known: &str| known.rsplit('.').next().unwrap_or_default().to_string();
        let moved = self.known.iter().find(|known| last(known) == name).cloned();
        let sibling = nearest(name, siblings.iter().copied()).map(|sibling| join(section, sibling));
        let by_name = || {
            let names: Vec<String> = self.known.iter().map(|known| last(known)).collect();
            let name = nearest(name, names.iter().map(String::as_str))?;
            self.known.iter().find(|known| last(known) == name).cloned()
        };
        match moved.or(sibling).or_else(by_name) {
            Some(known) => format!("did you mean `{known}`?"),
            None if section.is_empty() => format!("the sections are {}", siblings.join(", ")),
            None => format!("[{section}] has {}", siblings.join(", ")),
        }
    }

    /// Where the value of `key` was written: at the key itself, a key above it or one below it.
    fn origin(&self, key: &str) -> Origin {
        let above = |written: &str| key.strip_prefix(written).is_some_and(|rest| rest.starts_with(['.', '[']));
        let below = |written: &str| written.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'));
        self.origins
            .iter()
            .filter(|(written, _)| *written == key || above(written) || below(written))
            .map(|(_, origin)| origin)
            .max_by_key(|origin| origin.rank())
            .unwrap_or(&self.base)
            .clone()
    }

    /// The value of `key` as TOML on one line, cut when long.
    fn shown(&self, key: &str) -> String {
        let key = key.split('[').next().unwrap_or(key);
        let mut value = None;
        let mut table = Some(&self.table);
        for part in key.split('.') {
            value = table.and_then(|table| table.get(part));
            table = value.and_then(Value::as_table);
        }
        let Some(value) = value else { return "(not given)".into() };
        let text = value.to_string().replace('\n', " ");
        if text.chars().count() > 80 { text.chars().take(77).chain("...".chars()).collect() } else { text }
    }
}

/// Gives a key its built-in value, or takes it out where there is none. Whether that changed anything.
fn reset(table: &mut Table, built_in: &Table, key: &str) -> bool {
    let (section, rest) = key.split_once('.').map_or((key, None), |(section, rest)| (section, Some(rest)));
    match (table.get_mut(section), built_in.get(section), rest) {
        (Some(Value::Table(inner)), Some(Value::Table(built_in)), Some(rest)) => reset(inner, built_in, rest),
        (Some(value), Some(built_in), _) if value != built_in => {
            *value = built_in.clone();
            true
        }
        (Some(_), None, _) => table.remove(section).is_some(),
        _ => false,
    }
}

/// Calls `visit` with every key that holds no table, or an empty one.
fn leaves(section: &str, table: &Table, visit: &mut impl FnMut(String, &Value)) {
    for (key, value) in table {
        let key = join(section, key);
        match value {
            Value::Table(inner) if !inner.is_empty() => leaves(&key, inner, visit),
            value => visit(key, value),
        }
    }
}

fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(over)) => merge(inner, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// A file given by `--config`.
pub(super) fn read_file(path: &Path) -> Result<(Table, Origin), ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|reason| ConfigError::Read { path: path.into(), reason })?;
    let table = parse(path, &text)?;
    Ok((table, Origin::File(path.into())))
}

fn parse(path: &Path, text: &str) -> Result<Table, ConfigError> {
    text.parse::<Table>().map_err(|error| {
        let before = error.span().and_then(|span| text.as_bytes().get(..span.start)).unwrap_or_default();
        ConfigError::Syntax {
            path: path.into(),
            line: before.iter().filter(|byte| **byte == b'\n').count() + 1,
            message: error.message().replace('\n', "; "),
        }
    })
}

/// `section.key=value` of `--set`: the value as TOML, or a bare string.
pub(super) fn parse_set(text: &str) -> Result<(Table, Origin), ConfigError> {
    let bad = |problem: &str| ConfigError::BadSet { text: text.replace('\n', " "), problem: problem.into() };
    let (key, value) = text.split_once('=').ok_or_else(|| bad("there is no `=`"))?;
    let (key, value) = (key.trim(), value.trim());
    let is_word =
        |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if !key.split('.').all(is_word) {
        return Err(bad("the key has to be words joined by dots"));
    }
    if value.is_empty() {
        return Err(bad("there is no value after `=`"));
    }
    let value = match value.parse::<Value>() {
        Ok(value) => value,
        Err(_) if !value.starts_with(['[', '{', '"', '\'']) => Value::String(value.to_string()),
        Err(error) => return Err(bad(&format!("the value is not TOML ({})", error.message().replace('\n', "; ")))),
    };
    let table = key.rsplit('.').fold(value, |value, part| Value::Table(Table::from_iter([(part.to_string(), value)])));
    match table {
        Value::Table(table) => Ok((table, Origin::Set)),
        _ => Err(bad("there is no key before `=`")),
    }
}
