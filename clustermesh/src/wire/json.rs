//! JSON as Go reads and writes it: field names in any case, unknown fields ignored, duplicates merged or overruled as
//! Go does it, numbers kept as text (`1.0` is no integer), each byte of broken UTF-8 becomes U+FFFD, nesting up to
//! 10,000.
//!
//! What lies deeper than [`KEPT_DEPTH`] cannot be part of any record; it is checked for form without recursion and
//! not kept, so hostile nesting costs neither stack nor memory. Text without escapes is borrowed from the value.

mod reader;
#[cfg(test)]
mod tests;

use serde::Serialize;
use std::borrow::Cow;

pub use reader::parse;

/// Deepest nesting that is accepted, as Go does.
pub const MAX_DEPTH: usize = 10_000;
/// Deepest nesting that is kept; the records need five levels.
pub const KEPT_DEPTH: usize = 16;

/// A member of an object: name and value.
pub type Member<'a> = (Cow<'a, str>, Value<'a>);

/// A JSON value as read.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number's text.
    Number(&'a str),
    /// A string, unescaped.
    String(Cow<'a, str>),
    /// An array.
    Array(Vec<Self>),
    /// An object's members in their order, duplicates included.
    Object(Vec<Member<'a>>),
    /// A value nested too deep to matter.
    Skipped,
}

/// Where and why a text is no JSON, or not the wanted shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not JSON.
    #[error("byte {at}: {what}")]
    Syntax {
        /// Offset into the text.
        at: usize,
        /// What was expected.
        what: &'static str,
    },
    /// A field has the wrong type or an impossible value.
    #[error("field {field}: {what}")]
    Field {
        /// The field's name.
        field: String,
        /// What was expected.
        what: &'static str,
    },
}

impl JsonError {
    pub(crate) fn field(field: &str, what: &'static str) -> Self {
        Self::Field { field: field.chars().take(80).collect(), what }
    }
}

/// Writes a record as Go's encoder does: `<`, `>`, `&`, U+2028 and U+2029 come as `\u` escapes.
///
/// # Errors
/// Never for the records of this crate; the error of `serde_json` otherwise.
pub fn write<T: Serialize>(record: &T) -> Result<Vec<u8>, serde_json::Error> {
    let plain = serde_json::to_string(record)?;
    let mut text = String::with_capacity(plain.len());
    // These characters can stand only inside strings, so replacing them in the whole text is right.
    for character in plain.chars() {
        match character {
            '<' => text.push_str("\\u003c"),
            '>' => text.push_str("\\u003e"),
            '&' => text.push_str("\\u0026"),
            '\u{2028}' => text.push_str("\\u2028"),
            '\u{2029}' => text.push_str("\\u2029"),
            other => text.push(other),
        }
    }
    Ok(text.into_bytes())
}

/// Folds a field name the way Go compares them: ASCII case, long s and the Kelvin sign. The name of a record's field, on
/// the right, is ASCII.
fn same_name(left: &str, right: &str) -> bool {
    // The two that fold into one byte have more than one.
    if left.len() <= right.len() {
        return left.eq_ignore_ascii_case(right);
    }
    if left.is_ascii() {
        return false;
    }
    let fold = |character: char| match character {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    left.chars().map(fold).eq(right.chars().map(fold))
}

impl<'a> Value<'a> {
    /// This value as an object; `null` counts as an empty one.
    ///
    /// # Errors
    /// [`JsonError::Field`] with `name` when it is something else.
    pub fn object(&self, name: &str) -> Result<Object<'_, 'a>, JsonError> {
        match self {
            Self::Object(members) => Ok(Object(Cow::Borrowed(members))),
            Self::Null => Ok(Object(Cow::Borrowed(&[]))),
            _ => Err(JsonError::field(name, "expected an object")),
        }
    }

    /// This value as a string; `null` counts as `""`.
    ///
    /// # Errors
    /// [`JsonError::Field`] with `name` when it is something else.
    pub fn string(&self, name: &str) -> Result<&str, JsonError> {
        match self {
            Self::String(text) => Ok(text),
            Self::Null => Ok(""),
            _ => Err(JsonError::field(name, "expected a string")),
        }
    }

    /// This value as a whole number up to `max`.
    ///
    /// # Errors
    /// [`JsonError::Field`] with `name` when it is something else or too large.
    pub fn whole(&self, name: &str, max: u32) -> Result<u32, JsonError> {
        let number = match self {
            Self::Number(text) => text.parse::<u32>().ok().filter(|number| *number <= max),
            _ => None,
        };
        number.ok_or_else(|| JsonError::field(name, "expected a whole number in range"))
    }
}

/// The members of an object, with the look-ups that Go's decoder makes.
///
/// A name may stand several times. Every occurrence must have the right type. Of scalars the last one counts and `null`
/// changes nothing; objects are merged member by member; `null` empties what is a pointer, a map or an array in Go. Of
/// arrays the last one counts (Go would let it inherit fields of elements of the earlier one, which no producer means).
#[derive(Debug, Clone, PartialEq)]
pub struct Object<'v, 'a>(Cow<'v, [Member<'a>]>);

impl<'a> Object<'_, 'a> {
    /// The members in their order, duplicates included.
    #[must_use]
    pub fn members(&self) -> &[Member<'a>] {
        &self.0
    }

    fn occurrences<'o>(&'o self, name: &str) -> impl DoubleEndedIterator<Item = &'o Value<'a>> {
        self.0.iter().filter(move |(key, _)| same_name(key, name)).map(|(_, value)| value)
    }

    /// The last occurrence of a pointer or array; `None` when absent or `null`.
    #[must_use]
    pub fn last(&self, name: &str) -> Option<&Value<'a>> {
        self.occurrences(name).next_back().filter(|value| **value != Value::Null)
    }

    /// A string field; `""` when absent.
    ///
    /// # Errors
    /// [`JsonError::Field`] when it is no string.
    pub fn text(&self, name: &str) -> Result<&str, JsonError> {
        let mut text = "";
        for value in self.occurrences(name) {
            let said = value.string(name)?;
            if *value != Value::Null {
                text = said;
            }
        }
        Ok(text)
    }

    /// A boolean field; `false` when absent.
    ///
    /// # Errors
    /// [`JsonError::Field`] when it is no boolean.
    pub fn flag(&self, name: &str) -> Result<bool, JsonError> {
        self.occurrences(name).try_fold(false, |before, value| match value {
            Value::Null => Ok(before),
            Value::Bool(flag) => Ok(*flag),
            _ => Err(JsonError::field(name, "expected true or false")),
        })
    }

    /// A boolean that may be absent or `null`, which is more than `false`.
    ///
    /// # Errors
    /// [`JsonError::Field`] when it is no boolean.
    pub fn optional_flag(&self, name: &str) -> Result<Option<bool>, JsonError> {
        self.flag(name)?;
        Ok(match self.last(name) {
            Some(Value::Bool(flag)) => Some(*flag),
            _ => None,
        })
    }

    /// A whole number field up to `max`; 0 when absent.
    ///
    /// # Errors
    /// [`JsonError::Field`] when it is no whole number or too large.
    pub fn number(&self, name: &str, max: u32) -> Result<u32, JsonError> {
        self.occurrences(name).try_fold(0, |before, value| match value {
            Value::Null => Ok(before),
            value => value.whole(name, max),
        })
    }

    /// A whole number up to 65,535; 0 when absent.
    ///
    /// # Errors
    /// [`JsonError::Field`] when it is no whole number or too large.
    pub fn port(&self, name: &str) -> Result<u16, JsonError> {
        Ok(u16::try_from(self.number(name, u32::from(u16::MAX))?).unwrap_or_default())
    }

    /// A whole number up to 255; 0 when absent.
    ///
    /// # Errors
    /// [`JsonError::Field`] when it is no whole number or too large.
    pub fn byte(&self, name: &str) -> Result<u8, JsonError> {
        Ok(u8::try_from(self.number(name, u32::from(u8::MAX))?).unwrap_or_default())
    }

    /// A field that is a structure in Go: `null` changes nothing.
    ///
    /// # Errors
    /// [`JsonError::Field`] when it is no object.
    pub fn structure(&self, name: &str) -> Result<Object<'_, 'a>, JsonError> {
        self.merged(name, false)
    }

    /// A field that is a map or a pointer to a structure in Go: `null` empties it. Empty when absent.
    ///
    /// # Errors
    /// [`JsonError::Field`] when it is no object.
    pub fn map(&self, name: &str) -> Result<Object<'_, 'a>, JsonError> {
        self.merged(name, true)
    }

    fn merged(&self, name: &str, null_empties: bool) -> Result<Object<'_, 'a>, JsonError> {
        let mut merged = Object(Cow::Borrowed(&[][..]));
        for value in self.occurrences(name) {
            let said = value.object(name)?;
            if *value == Value::Null && null_empties || merged.0.is_empty() {
                merged = said;
            } else {
                merged.0.to_mut().extend(said.0.iter().cloned());
            }
        }
        Ok(merged)
    }

    /// An array field; empty when absent or `null`.
    ///
    /// # Errors
    /// [`JsonError::Field`] when it is no array.
    pub fn list(&self, name: &str) -> Result<&[Value<'a>], JsonError> {
        self.occurrences(name).try_fold(&[][..], |_, value| match value {
            Value::Array(elements) => Ok(elements.as_slice()),
            Value::Null => Ok(&[][..]),
            _ => Err(JsonError::field(name, "expected an array")),
        })
    }
}
