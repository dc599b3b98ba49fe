//! Typed settings out of TOML values, with errors that know the key.
//!
//! `toml`'s own deserializer reports a position in a file, which a value merged from several layers no longer
//! has; and an unknown key as text, from which the nearest known one could only be guessed. This one reports both
//! as data.

use serde::de::value::StringDeserializer;
use serde::de::{self, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use toml::Value;

/// The text that switches an optional key off.
pub(super) const NONE: &str = "none";

/// Why a value does not fit.
#[derive(Debug)]
pub(super) enum Problem {
    /// A key that the section does not have.
    Unknown {
        /// The keys that it has.
        known: &'static [&'static str],
    },
    /// Anything else, as a clause that says what the value has to be.
    Unfit(String),
}

/// A value that does not fit, and the key it stands under.
#[derive(Debug)]
pub(super) struct ValueError {
    /// Keys from the top, joined by dots; empty until the error has passed the map that knows it.
    pub(super) key: String,
    pub(super) problem: Problem,
}

impl ValueError {
    fn unfit(message: impl Into<String>) -> Self {
        Self { key: String::new(), problem: Problem::Unfit(message.into()) }
    }

    fn under(mut self, key: &str) -> Self {
        if self.key.is_empty() {
            self.key = key.to_string();
        }
        self
    }
}

impl std::fmt::Display for ValueError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {:?}", self.key, self.problem)
    }
}

impl std::error::Error for ValueError {}

impl de::Error for ValueError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::unfit(message.to_string())
    }

    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::unfit(format!("must be {}", in_words(&expected.to_string())))
    }

    fn invalid_value(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::unfit(format!("must be {}", in_words(&expected.to_string())))
    }

    fn invalid_length(_: usize, expected: &dyn de::Expected) -> Self {
        Self::unfit(format!("must be {}", in_words(&expected.to_string())))
    }

    fn missing_field(name: &'static str) -> Self {
        Self::unfit(format!("must also have `{name}`"))
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        let nearest = nearest(variant, known.iter().copied()).map(|name| format!("; did you mean \"{name}\"?"));
        Self::unfit(format!("must be one of {}{}", known.join(", "), nearest.unwrap_or_default()))
    }
}

/// Serde's names of what it expects, as a person would put them.
fn in_words(expected: &str) -> String {
    match expected {
        "usize" | "u64" | "u32" => "a whole number, 0 or more".into(),
        "f64" | "f32" => "a number".into(),
        "a boolean" => "true or false".into(),
        "path string" => "a path, in quotes".into(),
        "a tuple of size 2" | "an array of length 2" => "a pair such as [0, 448]".into(),
        "a sequence" => "a list".into(),
        other if other.starts_with("struct ") => "a section, such as { key = value }".into(),
        other => other.into(),
    }
}

/// The known name most like `name`, if one is like it at all.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // With half of the letters wrong or more a suggestion is a guess and only misleads.
    known
        .map(|candidate| (strsim::normalized_damerau_levenshtein(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.5)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Deserializes one value; `key` is its path from the top.
pub(super) struct Keyed {
    pub(super) key: String,
    pub(super) value: Value,
}

impl<'de> de::Deserializer<'de> for Keyed {
    type Error = ValueError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        let key = self.key.clone();
        let result = match self.value {
            Value::String(text) => visitor.visit_string(text),
            Value::Integer(number) => visitor.visit_i64(number),
            Value::Float(number) => visitor.visit_f64(number),
            Value::Boolean(truth) => visitor.visit_bool(truth),
            Value::Datetime(time) => visitor.visit_string(time.to_string()),
            Value::Array(items) => {
                let mut items = Items { key: self.key, items: items.into_iter(), index: 0 };
                visitor.visit_seq(&mut items).and_then(|value| match items.items.len() {
                    0 => Ok(value),
                    // A pair stops reading after two; the rest would be dropped in silence.
                    _ => Err(ValueError::unfit(format!("must have {} values, no more", items.index))),
                })
            }
            Value::Table(table) => {
                visitor.visit_map(Entries { key: self.key, entries: table.into_iter(), current: None })
            }
        };
        result.map_err(|error| error.under(&key))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        match &self.value {
            Value::String(text) if text == NONE => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ValueError> {
        // A list would be taken for the values of the keys in their order.
        let Value::Table(table) = &self.value else {
            return Err(ValueError::unfit("must be a section, such as { key = value }").under(&self.key));
        };
        if let Some(unknown) = table.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(ValueError { key: join(&self.key, unknown), problem: Problem::Unknown { known } });
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ValueError> {
        let Value::String(name) = self.value else {
            return Err(ValueError::unfit(format!("must be one of {}", known.join(", "))).under(&self.key));
        };
        visitor.visit_enum(StringDeserializer::new(name)).map_err(|error: ValueError| error.under(&self.key))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map identifier ignored_any
    }
}

/// `section.key`, or `key` at the top.
pub(super) fn join(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_string() } else { format!("{section}.{key}") }
}

struct Entries {
    key: String,
    entries: toml::map::IntoIter<String, Value>,
    current: Option<(String, Value)>,
}

impl<'de> MapAccess<'de> for Entries {
    type Error = ValueError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ValueError> {
        self.current = self.entries.next();
        let Some((key, _)) = &self.current else { return Ok(None) };
        seed.deserialize(key.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, ValueError> {
        let (key, value) = self.current.take().ok_or_else(|| ValueError::unfit("a value was read before its key"))?;
        seed.deserialize(Keyed { key: join(&self.key, &key), value })
    }
}

struct Items {
    key: String,
    items: std::vec::IntoIter<Value>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Items {
    type Error = ValueError;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, ValueError> {
        let Some(value) = self.items.next() else { return Ok(None) };
        let key = format!("{}[{}]", self.key, self.index);
        self.index += 1;
        seed.deserialize(Keyed { key, value }).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}
