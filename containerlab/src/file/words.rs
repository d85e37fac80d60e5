//! Command lines as containerlab reads them: words separated by blanks, with quotes and backslashes as in a shell, but
//! no shell behind them (no variables, pipes or globs; write `sh -c '...'` for those).

/// Splits a command line into words.
///
/// # Errors
/// A quote is not closed or the line ends in a backslash; the text says which.
pub fn split_words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '\'' => quoted(&mut chars, word.get_or_insert_default(), '\'', line)?,
            '"' => quoted(&mut chars, word.get_or_insert_default(), '"', line)?,
            '\\' => match chars.next() {
                Some('\n') => {}
                Some(next) => word.get_or_insert_default().push(next),
                None => {
                    return Err(format!("the command {line:?} ends in a backslash; remove it or double it"));
                }
            },
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

fn quoted(chars: &mut std::str::Chars<'_>, word: &mut String, quote: char, line: &str) -> Result<(), String> {
    let open = || format!("the command {line:?} has no closing {quote}");
    loop {
        let c = chars.next().ok_or_else(open)?;
        if c == quote {
            return Ok(());
        }
        if quote == '"' && c == '\\' {
            match chars.next().ok_or_else(open)? {
                '\n' => {}
                escaped @ ('"' | '\\' | '$' | '`') => word.push(escaped),
                other => word.extend(['\\', other]),
            }
        } else {
            word.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::split_words;

    #[test]
    fn words_quotes_and_backslashes() {
        for (line, words) in [
            ("bird -f  -c /etc/bird.conf", &["bird", "-f", "-c", "/etc/bird.conf"][..]),
            ("sh -c 'a && \"b c\"'", &["sh", "-c", "a && \"b c\""]),
            (r#"x "a \"b\" \n" c\ d '' "#, &["x", r#"a "b" \n"#, "c d", ""]),
            ("", &[]),
        ] {
            assert_eq!(split_words(line).unwrap(), words, "{line}");
        }
        assert!(split_words("sh -c 'open").unwrap_err().contains("closing '"));
        assert!(split_words("tail\\").unwrap_err().contains("backslash"));
    }
}
