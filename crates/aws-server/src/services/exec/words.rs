//! A command line as words, as a shell splits them. Pure.

/// Splits; `None` where a quotation mark stays open.
pub(super) fn split(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None | Some('"'), '\\') => word.get_or_insert_default().push(characters.next()?),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn words() {
        for (text, expected) in [
            ("sh", &["sh"][..]),
            ("  /bin/sh -c 'echo  \"a b\"' ", &["/bin/sh", "-c", "echo  \"a b\""]),
            (r#"a\ b "c \" d" ''"#, &["a b", "c \" d", ""]),
            ("", &[]),
        ] {
            assert_eq!(split(text).unwrap(), expected, "{text}");
        }
        assert_eq!(split("echo 'x"), None);
        assert_eq!(split("x\\"), None);
    }
}
