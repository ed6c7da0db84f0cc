//! Files of variables that a container of the pod wrote (`fileKeyRef`): `NAME='value'`, single quotes required; a value
//! may have several lines, and stands as it is.

/// The value of `key` in a file. Errors are sentences about the file.
pub fn find(text: &str, key: &str) -> Result<Option<String>, String> {
    let mut rest = text;
    let mut found = None;
    let mut line = 1;
    while !rest.is_empty() {
        let (first, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let entry = first.trim();
        if entry.is_empty() || entry.starts_with('#') {
            (rest, line) = (after, line + 1);
            continue;
        }
        let bad = |why: &str| format!("line {line}: {why}");
        let (name, _) = first.split_once('=').ok_or_else(|| bad("no `=`"))?;
        let value = rest[name.len() + 1..]
            .strip_prefix('\'')
            .ok_or_else(|| bad("the value is not in single quotes"))?;
        let end = value.find('\'').ok_or_else(|| bad("the value has no closing quote"))?;
        let (tail, after) = value[end + 1..].split_once('\n').unwrap_or((&value[end + 1..], ""));
        let tail = tail.trim();
        if !tail.is_empty() && !tail.starts_with('#') {
            return Err(bad("something follows the value"));
        }
        // The last one counts, as in a shell.
        if name.trim() == key {
            found = Some(value[..end].to_string());
        }
        line += value[..end].matches('\n').count() + 1;
        rest = after;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads() {
        let text = "# made by init\n\nA='1'\nB='two\nlines' # kept\nA='3'\n EMPTY=''\n";
        let get = |key: &str| find(text, key).unwrap();
        assert_eq!(get("A").as_deref(), Some("3"));
        assert_eq!(get("B").as_deref(), Some("two\nlines"));
        assert_eq!(get("EMPTY").as_deref(), Some(""));
        assert_eq!(get("C"), None);
    }

    #[test]
    fn refuses() {
        for (text, why) in [
            ("A=1", "line 1: the value is not in single quotes"),
            ("\nA", "line 2: no `=`"),
            ("A='x\ny'\nB='", "line 3: the value has no closing quote"),
            ("A='x'y", "line 1: something follows the value"),
        ] {
            assert_eq!(find(text, "A").unwrap_err(), why);
        }
    }
}
