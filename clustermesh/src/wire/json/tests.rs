//! What Go takes and what it refuses, and how it takes it.

use super::*;
use proptest::prelude::*;

#[test]
fn names_in_any_case_and_the_last_duplicate_wins() {
    let value =
        parse(br#"{"ClusterID":1,"x":{"y":[1,2,{"z":null}]},"CLUSTERid":2,"clusterid":null}"#).unwrap();
    let value = value.object("test").unwrap();
    assert_eq!(value.number("clusterID", 300), Ok(2));
    assert!(value.number("clusterID", 1).is_err());
    assert_eq!(value.text("absent"), Ok(""));
    let folded = parse("{\"\u{17f}hared\":true,\"\u{212a}ey\":7}".as_bytes()).unwrap();
    let folded = folded.object("test").unwrap();
    assert_eq!((folded.flag("shared"), folded.byte("Key")), (Ok(true), Ok(7)));
}

#[test]
fn numbers_are_whole_or_refused() {
    for bad in ["1.0", "1e0", "-1", "4294967296", "\"1\"", "true"] {
        let text = format!("{{\"n\":{bad}}}");
        let value = parse(text.as_bytes()).unwrap();
        assert!(value.object("test").unwrap().number("n", u32::MAX).is_err(), "{bad}");
    }
    for bad in ["{\"n\":01}", "{\"n\":+1}", "{\"n\":1.}", "{\"n\":.5}", "{'n':1}", "{\"n\":1,}", "{\"n\":1}x"]
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
    let value = value.object("test").unwrap();
    assert_eq!(value.text("a"), Ok("<b> \u{1f600} \u{fffd}x"));
    assert_eq!(value.text("b"), Ok("\u{fffd}"));
    assert_eq!(write(&"<&>\u{2028}").unwrap(), br#""\u003c\u0026\u003e\u2028""#);
}

/// Bytes within quotes, and what Go makes of them; `None` where it refuses the text.
const STRINGS: &[(&[u8], Option<&str>)] = &[
    (b"plain", Some("plain")),
    (b"\\\"\\\\\\/\\b\\f\\n\\r\\t", Some("\"\\/\u{8}\u{c}\n\r\t")),
    (b"\\u0041\\u00e9\\uFFFD\\u0000", Some("A\u{e9}\u{fffd}\0")),
    (b"\\ud83d\\ude00", Some("\u{1f600}")),
    // Halves of pairs become U+FFFD, and what follows them is read for itself.
    (b"\\ud83d", Some("\u{fffd}")),
    (b"\\ude00\\ud83d", Some("\u{fffd}\u{fffd}")),
    (b"\\ud83d\\u0041", Some("\u{fffd}A")),
    (b"\\ud83d\\ud83d\\ude00", Some("\u{fffd}\u{1f600}")),
    (b"\\ud83d\\n", Some("\u{fffd}\n")),
    // Each byte that is no UTF-8 becomes one U+FFFD: cut off, stray, overlong, a surrogate, past the last character.
    (b"\xe2\x82", Some("\u{fffd}\u{fffd}")),
    (b"\xe2\x82\\u0041", Some("\u{fffd}\u{fffd}A")),
    (b"a\x80b", Some("a\u{fffd}b")),
    (b"\xc0\xaf", Some("\u{fffd}\u{fffd}")),
    (b"\xed\xa0\x80", Some("\u{fffd}\u{fffd}\u{fffd}")),
    (b"\xf4\x90\x80\x80", Some("\u{fffd}\u{fffd}\u{fffd}\u{fffd}")),
    (b"\x7f\xc2\x80", Some("\u{7f}\u{80}")),
    (b"\\x41", None),
    (b"\\u12", None),
    (b"\\u00g0", None),
    (b"\\", None),
    (b"a\nb", None),
    (b"a\tb", None),
    (b"a\0b", None),
];

#[test]
fn strings_as_go_takes_them() {
    for (bytes, expected) in STRINGS {
        let text = [b"{\"s\":\"", *bytes, b"\"}"].concat();
        let read = parse(&text).ok().map(|value| value.object("test").unwrap().text("s").unwrap().to_owned());
        assert_eq!(read.as_deref(), *expected, "{}", bytes.escape_ascii());
    }
}

#[test]
fn duplicates_as_go_takes_them() {
    let value = parse(
        br#"{"map":{"a":1,"b":2},"Map":{"b":3},"gone":{"a":1},"gone":null,"list":[1,2],"list":[3],
             "none":[1],"none":null,"late":null,"late":{"x":4},"wrong":{"a":1},"wrong":7,"s":"x","s":null,"f":true,"f":0}"#,
    )
    .unwrap();
    let root = value.object("test").unwrap();
    let map = root.map("map").unwrap();
    assert_eq!((map.number("a", 9), map.number("b", 9)), (Ok(1), Ok(3)));
    assert!(root.map("gone").unwrap().members().is_empty());
    assert_eq!(root.structure("gone").unwrap().number("a", 9), Ok(1));
    assert_eq!(root.list("list").unwrap(), [Value::Number("3")]);
    assert!(root.list("none").unwrap().is_empty() && root.last("none").is_none());
    assert_eq!(root.map("late").unwrap().number("x", 9), Ok(4));
    assert_eq!(root.text("s"), Ok("x"));
    // A wrong type is a mistake also where a later occurrence would be right, or the other way round.
    assert!(root.map("wrong").is_err() && root.flag("f").is_err() && root.list("map").is_err());
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(text in ".{0,40}") {
        let written = write(&serde_json::json!({ "t": text })).unwrap();
        let value = parse(&written).unwrap();
        let value = value.object("test").unwrap();
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
