//! JSON as Go reads and writes it: field names in any case, unknown fields ignored, the last duplicate wins,
//! numbers kept as text (`1.0` is no integer), broken UTF-8 becomes U+FFFD, nesting up to 10,000.
//!
//! What lies deeper than [`KEPT_DEPTH`] cannot be part of any record; it is checked for form without recursion and
//! not kept, so hostile nesting costs neither stack nor memory.

use serde::Serialize;

/// Deepest nesting that is accepted, as Go does.
pub const MAX_DEPTH: usize = 10_000;
/// Deepest nesting that is kept; the records need five levels.
pub const KEPT_DEPTH: usize = 16;

/// A JSON value as read.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number's text.
    Number(String),
    /// A string, unescaped.
    String(String),
    /// An array.
    Array(Vec<Value>),
    /// An object's members in their order, duplicates included.
    Object(Vec<(String, Value)>),
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

/// Reads one JSON text.
///
/// # Errors
/// [`JsonError::Syntax`] with the offset.
pub fn parse(text: &[u8]) -> Result<Value, JsonError> {
    let mut reader = Reader { text, at: 0 };
    let value = reader.value(0)?;
    reader.space();
    if reader.at == text.len() { Ok(value) } else { Err(reader.error("text after the value")) }
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

/// Folds a field name the way Go compares them: ASCII case, long s and the Kelvin sign.
fn same_name(left: &str, right: &str) -> bool {
    let fold = |character: char| match character {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    left.chars().map(fold).eq(right.chars().map(fold))
}

impl Value {
    /// The members of an object.
    ///
    /// # Errors
    /// [`JsonError::Field`] when it is something else; `null` counts as an empty object.
    pub fn members(&self, name: &str) -> Result<&[(String, Value)], JsonError> {
        match self {
            Self::Object(members) => Ok(members),
            Self::Null => Ok(&[]),
            _ => Err(JsonError::field(name, "expected an object")),
        }
    }

    /// The elements of an array; `null` counts as an empty one.
    ///
    /// # Errors
    /// [`JsonError::Field`] when it is something else.
    pub fn elements(&self, name: &str) -> Result<&[Value], JsonError> {
        match self {
            Self::Array(elements) => Ok(elements),
            Self::Null => Ok(&[]),
            _ => Err(JsonError::field(name, "expected an array")),
        }
    }

    /// The last member of that name that is not `null`, in any case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        let Self::Object(members) = self else { return None };
        let found = |(key, value): &&(String, Value)| *value != Self::Null && same_name(key, name);
        members.iter().rev().find(found).map(|(_, value)| value)
    }

    /// A string field; `""` when absent.
    ///
    /// # Errors
    /// [`JsonError::Field`] when it is no string.
    pub fn text(&self, name: &str) -> Result<&str, JsonError> {
        match self.get(name) {
            None => Ok(""),
            Some(Self::String(text)) => Ok(text),
            Some(_) => Err(JsonError::field(name, "expected a string")),
        }
    }

    /// A boolean field; `None` when absent.
    ///
    /// # Errors
    /// [`JsonError::Field`] when it is no boolean.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, JsonError> {
        match self.get(name) {
            None => Ok(None),
            Some(Self::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(JsonError::field(name, "expected true or false")),
        }
    }

    /// A whole number field up to `max`; 0 when absent.
    ///
    /// # Errors
    /// [`JsonError::Field`] when it is no whole number or too large.
    pub fn number(&self, name: &str, max: u32) -> Result<u32, JsonError> {
        let bad = || JsonError::field(name, "expected a whole number in range");
        match self.get(name) {
            None => Ok(0),
            Some(Self::Number(text)) => match text.parse::<u32>() {
                Ok(number) if number <= max => Ok(number),
                _ => Err(bad()),
            },
            Some(_) => Err(bad()),
        }
    }
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn error(&self, what: &'static str) -> JsonError {
        JsonError::Syntax { at: self.at, what }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8, what: &'static str) -> Result<(), JsonError> {
        if self.peek() == Some(byte) {
            self.at += 1;
            Ok(())
        } else {
            Err(self.error(what))
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, JsonError> {
        self.space();
        match self.peek() {
            Some(b'{' | b'[') if depth >= KEPT_DEPTH => self.skip(depth),
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            _ => self.scalar(),
        }
    }

    fn scalar(&mut self) -> Result<Value, JsonError> {
        match self.peek() {
            Some(b'"') => Ok(Value::String(self.string()?)),
            Some(b'-' | b'0'..=b'9') => Ok(Value::Number(self.number()?)),
            Some(b't') => self.word(b"true", Value::Bool(true)),
            Some(b'f') => self.word(b"false", Value::Bool(false)),
            Some(b'n') => self.word(b"null", Value::Null),
            _ => Err(self.error("expected a value")),
        }
    }

    fn word(&mut self, word: &'static [u8], value: Value) -> Result<Value, JsonError> {
        if self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            self.at += word.len();
            Ok(value)
        } else {
            Err(self.error("expected true, false or null"))
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, JsonError> {
        self.at += 1;
        let mut members = Vec::new();
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Object(members));
        }
        loop {
            self.space();
            let key = self.string()?;
            self.space();
            self.expect(b':', "expected ':'")?;
            members.push((key, self.value(depth + 1)?));
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return Err(self.error("expected ',' or '}'")),
            }
        }
        self.at += 1;
        Ok(Value::Object(members))
    }

    fn array(&mut self, depth: usize) -> Result<Value, JsonError> {
        self.at += 1;
        let mut elements = Vec::new();
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(elements));
        }
        loop {
            elements.push(self.value(depth + 1)?);
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => break,
                _ => return Err(self.error("expected ',' or ']'")),
            }
        }
        self.at += 1;
        Ok(Value::Array(elements))
    }

    /// Checks a nested value without recursion and keeps nothing of it.
    fn skip(&mut self, depth: usize) -> Result<Value, JsonError> {
        let mut open: Vec<u8> = Vec::new();
        loop {
            self.space();
            match self.peek() {
                Some(bracket @ (b'{' | b'[')) => {
                    self.at += 1;
                    if depth + open.len() >= MAX_DEPTH {
                        return Err(self.error("nested too deep"));
                    }
                    let close = if bracket == b'{' { b'}' } else { b']' };
                    open.push(close);
                    self.space();
                    if self.peek() == Some(close) {
                        // An empty one: handled by the closing loop below.
                    } else {
                        self.member_name(close)?;
                        continue;
                    }
                }
                _ => {
                    self.scalar()?;
                }
            }
            loop {
                let Some(&close) = open.last() else { return Ok(Value::Skipped) };
                self.space();
                match self.peek() {
                    Some(byte) if byte == close => {
                        self.at += 1;
                        open.pop();
                    }
                    Some(b',') => {
                        self.at += 1;
                        self.member_name(close)?;
                        break;
                    }
                    _ => return Err(self.error("expected ',' or a closing bracket")),
                }
            }
        }
    }

    fn member_name(&mut self, close: u8) -> Result<(), JsonError> {
        if close == b'}' {
            self.space();
            self.string()?;
            self.space();
            self.expect(b':', "expected ':'")?;
        }
        Ok(())
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.at - start
    }

    fn number(&mut self) -> Result<String, JsonError> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        let zero = self.peek() == Some(b'0');
        let whole = self.digits();
        if whole == 0 || (zero && whole > 1) {
            return Err(self.error("expected a number"));
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            if self.digits() == 0 {
                return Err(self.error("expected digits"));
            }
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if self.digits() == 0 {
                return Err(self.error("expected an exponent"));
            }
        }
        let text = self.text.get(start..self.at).unwrap_or_default();
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    fn string(&mut self) -> Result<String, JsonError> {
        self.expect(b'"', "expected a string")?;
        let mut bytes = Vec::new();
        loop {
            match self.peek() {
                None => return Err(self.error("string without end")),
                Some(b'"') => break,
                Some(b'\\') => {
                    self.at += 1;
                    let character = self.escape()?;
                    let mut buffer = [0; 4];
                    bytes.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes());
                }
                Some(byte) if byte < 0x20 => return Err(self.error("control character in a string")),
                Some(byte) => {
                    self.at += 1;
                    bytes.push(byte);
                }
            }
        }
        self.at += 1;
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned()))
    }

    fn escape(&mut self) -> Result<char, JsonError> {
        let byte = self.peek();
        self.at += 1;
        Ok(match byte {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => self.unicode()?,
            _ => return Err(self.error("unknown escape")),
        })
    }

    /// One `\uXXXX`, or a surrogate pair; a lone surrogate becomes U+FFFD.
    fn unicode(&mut self) -> Result<char, JsonError> {
        let first = self.hex()?;
        if (0xd800..0xdc00).contains(&first) && self.text.get(self.at..self.at + 2) == Some(b"\\u") {
            let back = self.at;
            self.at += 2;
            let second = self.hex()?;
            if (0xdc00..0xe000).contains(&second) {
                let code = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.at = back;
        }
        Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn hex(&mut self) -> Result<u32, JsonError> {
        let digits = self.text.get(self.at..self.at + 4).unwrap_or_default();
        if digits.len() != 4 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(self.error("expected four hex digits"));
        }
        self.at += 4;
        let text = String::from_utf8_lossy(digits);
        u32::from_str_radix(&text, 16).map_err(|_| self.error("expected four hex digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_in_any_case_and_the_last_duplicate_wins() {
        let value =
            parse(br#"{"ClusterID":1,"x":{"y":[1,2,{"z":null}]},"CLUSTERid":2,"clusterid":null}"#).unwrap();
        assert_eq!(value.number("clusterID", 300), Ok(2));
        assert!(value.number("clusterID", 1).is_err());
        assert_eq!(value.text("absent"), Ok(""));
    }

    #[test]
    fn numbers_are_whole_or_refused() {
        for bad in ["1.0", "1e0", "-1", "4294967296", "\"1\"", "true"] {
            let value = parse(format!("{{\"n\":{bad}}}").as_bytes()).unwrap();
            assert!(value.number("n", u32::MAX).is_err(), "{bad}");
        }
        for bad in
            ["{\"n\":01}", "{\"n\":+1}", "{\"n\":1.}", "{\"n\":.5}", "{'n':1}", "{\"n\":1,}", "{\"n\":1}x"]
        {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn deep_nesting_is_read_to_gos_limit() {
        let nest = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(nest(200).as_bytes()).is_ok());
        assert!(parse(nest(9_998).as_bytes()).is_ok());
        assert!(parse(nest(10_001).as_bytes()).is_err());
        let objects = format!("{}1{}", "{\"a\":".repeat(300), "}".repeat(300));
        assert!(parse(objects.as_bytes()).is_ok());
        assert!(parse("[".repeat(500_000).as_bytes()).is_err());
        let mixed = format!("{}{{\"b\":[],\"c\":{{}},\"d\":[1,\"x\"]}}{}", "[".repeat(40), "]".repeat(40));
        assert!(parse(mixed.as_bytes()).is_ok());
        let broken = format!("{}{{\"b\" 1}}{}", "[".repeat(40), "]".repeat(40));
        assert!(parse(broken.as_bytes()).is_err());
    }

    #[test]
    fn escapes_and_broken_text() {
        let value = parse(b"{\"a\":\"\\u003cb\\u003e \\ud83d\\ude00 \\ud800x\",\"b\":\"\xff\"}").unwrap();
        assert_eq!(value.text("a"), Ok("<b> \u{1f600} \u{fffd}x"));
        assert_eq!(value.text("b"), Ok("\u{fffd}"));
        assert_eq!(write(&"<&>\u{2028}").unwrap(), br#""\u003c\u0026\u003e\u2028""#);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(text in ".{0,40}") {
            let written = write(&serde_json::json!({ "t": text })).unwrap();
            let value = parse(&written).unwrap();
            prop_assert_eq!(value.text("t").unwrap(), text);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let ours = parse(&bytes).is_ok();
            // Whatever a strict reader takes, ours takes as well.
            if serde_json::from_slice::<serde_json::Value>(&bytes).is_ok() {
                prop_assert!(ours);
            }
        }
    }
}
