//! A command line as words, by the quoting rules of POSIX sh and by nothing else of it.
//!
//! Words are separated by blanks, tabs and newlines. `'…'` keeps everything; `"…"` keeps
//! everything but `\` before `"`, `\`, `$` and `` ` ``; `\` outside of quotes keeps the next
//! character. Nothing is expanded: `$`, `` ` ``, `*`, `~`, `;`, `|`, `&`, `<`, `#` are characters
//! like others. Who wants a shell names one: `/bin/sh -c "…"`.

/// Splits `line`; no words are fine.
///
/// # Errors
/// A quote that is not closed or a `\` at the end, in words.
pub(crate) fn split(line: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '\'' => single(&mut chars, word.get_or_insert_default())?,
            '"' => double(&mut chars, word.get_or_insert_default())?,
            '\\' => {
                let kept = chars.next().ok_or("a backslash at its end")?;
                word.get_or_insert_default().push(kept);
            }
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Ok(words)
}

fn single(chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), &'static str> {
    for c in chars {
        if c == '\'' {
            return Ok(());
        }
        word.push(c);
    }
    Err("an unclosed single quote")
}

fn double(chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), &'static str> {
    const UNCLOSED: &str = "an unclosed double quote";
    while let Some(c) = chars.next() {
        match c {
            '"' => return Ok(()),
            '\\' => match chars.next().ok_or(UNCLOSED)? {
                kept @ ('"' | '\\' | '$' | '`') => word.push(kept),
                other => word.extend(['\\', other]),
            },
            other => word.push(other),
        }
    }
    Err(UNCLOSED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_group_and_nothing_is_expanded() {
        let cases: [(&str, &[&str]); 11] = [
            ("", &[]),
            (" \t\n", &[]),
            ("/bin/sh -c", &["/bin/sh", "-c"]),
            ("a 'b c'  \"d e\"", &["a", "b c", "d e"]),
            ("a'b'\"c\"d", &["abcd"]),
            ("'' \"\"", &["", ""]),
            (r#""a\"b\\c\$d\n""#, &[r#"a"b\c$d\n"#]),
            (r"a\ b \'", &["a b", "'"]),
            ("'a\nb'", &["a\nb"]),
            (
                "$(id) `id` $HOME ~ * ; | & > < #x",
                &["$(id)", "`id`", "$HOME", "~", "*", ";", "|", "&", ">", "<", "#x"],
            ),
            ("größe 'ü ß'", &["größe", "ü ß"]),
        ];
        for (line, want) in cases {
            assert_eq!(split(line).unwrap(), want, "{line:?}");
        }
    }

    #[test]
    fn open_quotes_are_errors() {
        for bad in ["'a", "\"a", "\"a\\", "a\\", "a 'b\" c"] {
            assert!(split(bad).is_err(), "{bad:?}");
        }
    }
}
