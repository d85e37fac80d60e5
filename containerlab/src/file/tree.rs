//! YAML as a tree in which every value knows its line, so that every complaint can name one. Scalars keep the text
//! they were written as: `1.10` in `env` is a version, not the number 1.1.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A value and the line it stands on (from 1; the line of the alias for an aliased value).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    pub(super) line: u64,
    pub(super) value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Scalar(Scalar),
    List(Vec<Item>),
    /// Keys in file order, with their lines.
    Map(Vec<(String, u64, Item)>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scalar {
    pub(super) text: String,
    pub(super) json: serde_json::Value,
}

impl Item {
    /// What a person would call the value's type.
    pub(super) fn type_name(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
            Value::Scalar(scalar) => match scalar.json {
                serde_json::Value::Bool(_) => "true or false",
                serde_json::Value::Number(_) => "a number",
                _ => "a text",
            },
        }
    }

    /// The value without lines.
    pub(super) fn json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Scalar(scalar) => scalar.json.clone(),
            Value::List(items) => items.iter().map(Self::json).collect(),
            Value::Map(entries) => entries.iter().map(|(key, _, item)| (key.clone(), item.json())).collect(),
        }
    }
}

/// Parses one YAML document; the error is the parser's message and its line (0 if it knows none).
pub(super) fn parse(text: &str) -> Result<Item, (u64, String)> {
    let options = serde_saphyr::options! { with_snippet: false };
    let raw: Spanned<Raw> = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        (line, plain(&error.to_string()))
    })?;
    Ok(item(raw, text))
}

/// The parser's message, where it speaks to programmers in the words of people who write files.
fn plain(message: &str) -> String {
    if let Some((_, rest)) = message.split_once("duplicate mapping key: ") {
        let key = rest.split(", set DuplicateKeyPolicy").next().unwrap_or(rest);
        return format!("the key {key:?} stands twice in one map; remove or rename one of them");
    }
    if message.contains("recursive references") {
        return "an alias (*name) stands inside the very anchor (&name) it repeats".to_owned();
    }
    message.to_owned()
}

/// As the parser delivers it.
#[derive(Debug)]
enum Raw {
    Null,
    Bool(bool),
    Number(serde_json::Number, String),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<Raw>, Spanned<Raw>)>),
}

fn item(raw: Spanned<Raw>, source: &str) -> Item {
    let line = raw.referenced.line();
    let written = |fallback: String| {
        let span = raw.defined.span();
        let written = span.byte_offset().zip(span.byte_len()).and_then(|(offset, len)| {
            let start = usize::try_from(offset).ok()?;
            source.get(start..start.checked_add(usize::try_from(len).ok()?)?)
        });
        match written.map(str::trim) {
            Some(text) if !text.is_empty() && !text.starts_with(['*', '&', '!']) => text.to_owned(),
            _ => fallback,
        }
    };
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Bool(value) => Value::Scalar(Scalar { text: written(value.to_string()), json: value.into() }),
        Raw::Number(value, text) => {
            Value::Scalar(Scalar { text: written(text), json: serde_json::Value::Number(value) })
        }
        Raw::Text(text) => Value::Scalar(Scalar { json: text.clone().into(), text }),
        Raw::List(items) => Value::List(items.into_iter().map(|entry| item(entry, source)).collect()),
        Raw::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| {
                    let line = key.referenced.line();
                    let key = match item(key, source).value {
                        Value::Scalar(scalar) => scalar.text,
                        other => format!("{other:?}"),
                    };
                    (key, line, item(value, source))
                })
                .collect(),
        ),
    };
    Item { line, value }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Number(value.into(), value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Number(value.into(), value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        let text = value.to_string();
        Ok(serde_json::Number::from_f64(value)
            .map_or_else(|| Raw::Text(text.clone()), |n| Raw::Number(n, text.clone())))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(entry) = access.next_element()? {
            items.push(entry);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry<'a>(item: &'a Item, key: &str) -> &'a Item {
        let Value::Map(entries) = &item.value else { panic!("not a map: {item:?}") };
        &entries.iter().find(|(name, ..)| name == key).unwrap().2
    }

    fn text(item: &Item) -> &str {
        let Value::Scalar(scalar) = &item.value else { panic!("not a scalar: {item:?}") };
        &scalar.text
    }

    #[test]
    fn scalars_keep_their_spelling_and_everything_its_line() {
        let tree =
            parse("# a comment\na: 1.10\nb:\n  c: 0x10\n  d: \"true\"\n  e: yes\nf: [1, two]\n5: five\n")
                .unwrap();
        assert_eq!((text(entry(&tree, "a")), entry(&tree, "a").line), ("1.10", 2));
        let b = entry(&tree, "b");
        assert_eq!((text(entry(b, "c")), entry(b, "c").line), ("0x10", 4));
        assert_eq!(entry(b, "d").type_name(), "a text");
        assert_eq!(text(entry(b, "e")), "yes");
        assert_eq!(text(entry(&tree, "5")), "five");
        let Value::List(items) = &entry(&tree, "f").value else { panic!() };
        assert_eq!((items[0].line, text(&items[1])), (7, "two"));
    }

    #[test]
    fn anchors_aliases_and_merge_keys() {
        let tree = parse("x: &base\n  v: 1.20\n  w: 2\ny:\n  <<: *base\n  w: 3\nz: *base\n").unwrap();
        assert_eq!(text(entry(entry(&tree, "y"), "v")), "1.20");
        assert_eq!(text(entry(entry(&tree, "y"), "w")), "3");
        assert_eq!(text(entry(entry(&tree, "z"), "v")), "1.20");
    }

    #[test]
    fn broken_yaml_names_its_line() {
        let (line, message) = parse("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!(line >= 2, "line {line}: {message}");
    }
}
