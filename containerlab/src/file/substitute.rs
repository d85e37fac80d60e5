//! Environment variables in the text of a topology file, before it is parsed as YAML: `$VAR`, `${VAR}`,
//! `${VAR:-default}`, `${VAR:=default}`, `${VAR-default}`, `${VAR=default}`, `${VAR:+instead}`, `${VAR+instead}`;
//! `$$` stands for `$`. A variable that is not set and has no default stays as it stands, as containerlab does it.

use std::collections::BTreeMap;

/// The text with variables replaced, and those that were left for want of a value: line and name.
pub(crate) fn substitute(text: &str, env: &BTreeMap<String, String>) -> (String, Vec<(u64, String)>) {
    let mut out = String::with_capacity(text.len());
    let mut missing = Vec::new();
    for (number, line) in (1_u64..).zip(text.split_inclusive('\n')) {
        // Comments are never read, so a `$VAR` in one deserves no warning.
        let mut unset = Vec::new();
        expand(line, env, &mut out, &mut unset);
        if !line.trim_start().starts_with('#') {
            missing.extend(unset.into_iter().map(|name| (number, name)));
        }
    }
    (out, missing)
}

fn expand(text: &str, env: &BTreeMap<String, String>, out: &mut String, unset: &mut Vec<String>) {
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        rest = after;
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((inside, after)) = rest.strip_prefix('{').and_then(split_braces) {
            match braces(inside, env, unset) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("${");
                    out.push_str(inside);
                    out.push('}');
                }
            }
            rest = after;
        } else {
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            // `$1` and a lone `$` belong to shell commands, not to us.
            match env.get(name) {
                Some(value) if is_name(name) => out.push_str(value),
                _ => {
                    out.push('$');
                    out.push_str(name);
                    if is_name(name) {
                        unset.push(name.to_owned());
                    }
                }
            }
            rest = after;
        }
    }
    out.push_str(rest);
}

/// Splits after the brace that closes, counting the ones inside (`${A:-${B}}`).
fn split_braces(text: &str) -> Option<(&str, &str)> {
    let mut depth = 1_u32;
    for (index, c) in text.char_indices() {
        match c {
            '{' => depth = depth.saturating_add(1),
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return Some((text.get(..index)?, text.get(index.checked_add(1)?..)?));
        }
    }
    None
}

/// The value of what stands in braces; `None` leaves it as it stands.
fn braces(inside: &str, env: &BTreeMap<String, String>, unset: &mut Vec<String>) -> Option<String> {
    let end = inside.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(inside.len());
    let (name, rest) = inside.split_at(end);
    if !is_name(name) {
        return None;
    }
    let value = env.get(name);
    let (colon, operator) = match rest.strip_prefix(':') {
        Some(operator) => (true, operator),
        None => (false, rest),
    };
    let usable = value.filter(|value| !(colon && value.is_empty()));
    let mut operand = |text: &str| {
        let mut expanded = String::new();
        expand(text, env, &mut expanded, unset);
        expanded
    };
    if let Some(default) = operator.strip_prefix(['-', '=']) {
        return Some(usable.cloned().unwrap_or_else(|| operand(default)));
    }
    if let Some(instead) = operator.strip_prefix('+') {
        return Some(usable.map(|_| operand(instead)).unwrap_or_default());
    }
    if !rest.is_empty() {
        return None;
    }
    if value.is_none() {
        unset.push(name.to_owned());
    }
    value.cloned()
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> String {
        let env = [("A", "one"), ("EMPTY", ""), ("B_2", "two")];
        let env = env.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        substitute(text, &env).0
    }

    #[test]
    fn every_form() {
        for (text, expected) in [
            ("$A/${A}/x$B_2", "one/one/xtwo"),
            ("${A:=d} ${A:-d} ${A-d} ${A=d}", "one one one one"),
            ("${NO:=d} ${NO:-d} ${NO-d} ${NO=d}", "d d d d"),
            ("${EMPTY:=d}|${EMPTY:-d}|${EMPTY-d}|${EMPTY=d}|${EMPTY}", "d|d|||"),
            ("${A:+x}${NO:+x}${EMPTY:+y}${EMPTY+z}", "xz"),
            ("${NO:-${A}/${NO2:=deep}}", "one/deep"),
            ("$$A $${A}", "$A ${A}"),
            ("echo $1 $ ${} ${1:-x} $(cmd)", "echo $1 $ ${} ${1:-x} $(cmd)"),
            ("${NO} $NO", "${NO} $NO"),
            ("${open", "${open"),
            ("${TAG:-a:b=c}", "a:b=c"),
            ("héé $A ü", "héé one ü"),
        ] {
            assert_eq!(run(text), expected, "{text}");
        }
    }

    #[test]
    fn unset_ones_are_named_with_their_line_except_in_comments() {
        let (_, missing) = substitute("a\n# $NOPE\nb: $X ${Y} ${Z:-1}\n", &BTreeMap::new());
        assert_eq!(missing, [(3, "X".to_owned()), (3, "Y".to_owned())]);
    }
}
