//! Finds the line of a key path in a YAML document. Runs only when there is a problem to report.

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use std::fmt;

/// A document's shape with the place of each value.
enum Node {
    Map(Vec<(String, Spanned<Node>)>),
    List(Vec<Spanned<Node>>),
    Scalar,
}

struct NodeVisitor;

macro_rules! scalars {
    ($($name:ident: $type:ty),*) => {
        $(fn $name<E>(self, _: $type) -> Result<Node, E> { Ok(Node::Scalar) })*
    };
}

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    scalars!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_i128: i128, visit_u128: u128,
        visit_f64: f64, visit_str: &str, visit_bytes: &[u8]);

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Node::Scalar)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<String>()? {
            entries.push((key, access.next_value()?));
        }
        Ok(Node::Map(entries))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

/// The parts of `spec.ports[0].port`: keys and positions.
fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split(['.', '[']).map(|part| part.trim_end_matches(']')).filter(|part| !part.is_empty())
}

/// The line (from 1, within `text`) of the deepest part of `path` that stands in the document.
///
/// A key that holds a dot (`metadata.labels.a.b`) is found by trying the rest of the path as one key.
pub(crate) fn line_of(text: &str, path: &str) -> Option<u64> {
    let root: Spanned<Node> = serde_saphyr::from_str(text).ok()?;
    let mut line = root.referenced.line();
    let mut at = &root;
    for (depth, part) in parts(path).enumerate() {
        let rest = || parts(path).skip(depth).collect::<Vec<_>>().join(".");
        let next = match &at.value {
            Node::Map(entries) => entries
                .iter()
                .find(|(key, _)| key == part)
                .or_else(|| entries.iter().find(|(key, _)| *key == rest()))
                .map(|(_, node)| node),
            Node::List(items) => part.parse::<usize>().ok().and_then(|position| items.get(position)),
            Node::Scalar => None,
        };
        let Some(next) = next else { break };
        line = next.referenced.line();
        at = next;
    }
    (line > 0).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::line_of;

    #[test]
    fn finds_the_deepest_part() {
        let text = "kind: A\nspec:\n  ports:\n  - port: 1\n  - port: 2\n    name: x\n";
        assert_eq!(line_of(text, "spec.ports[1].name"), Some(6));
        assert_eq!(line_of(text, "spec.ports[1].missing"), Some(5));
        assert_eq!(line_of(text, "kind"), Some(1));
        assert_eq!(line_of("a: [", "a"), None);
    }
}
