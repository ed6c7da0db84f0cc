//! Environment files: `NAME=value` lines of objects in S3. Pure.

use crate::names::Arn;
use std::collections::BTreeMap;

/// Most environment files of a task definition.
pub const FILES_MAX: usize = 10;
/// Bytes of all variables of one container's files: they live in one Secret.
pub const BYTES_MAX: usize = 900 << 10;

/// Bucket and key that an ARN names (`arn:aws:s3:::bucket/key`).
pub fn location(arn: &str) -> Option<(&str, &str)> {
    let arn = Arn::parse(arn).filter(|a| a.service == "s3")?;
    arn.resource.split_once('/').filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty())
}

/// The variables of a file, by the ECS agent's rules: comments begin with `#`; both sides of the first `=` hold
/// something; any other line says nothing.
fn variables(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    lines.filter_map(|l| l.split_once('=')).filter(|(name, value)| !name.is_empty() && !value.is_empty())
}

/// The variables of several files; where two have the same, the first file's holds. Names that no Secret can hold as
/// a key are left out.
pub fn merged<'a>(files: impl Iterator<Item = &'a str>) -> BTreeMap<String, String> {
    let fits = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let mut out = BTreeMap::new();
    for (name, value) in files.flat_map(variables).filter(|(name, _)| fits(name)) {
        out.entry(name.to_string()).or_insert_with(|| value.to_string());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_count() {
        let first = "# c\nA=1\n\nB=x=y z \nNOVALUE=\n=x\nplain\n #D=4\r\nA B=1";
        let all = merged([first, "A=2\nC='q'\n"].into_iter());
        let pairs: Vec<(&str, &str)> = all.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(pairs, [("A", "1"), ("B", "x=y z "), ("C", "'q'")]);
        assert_eq!(location("arn:aws:s3:::b/dir/x.env"), Some(("b", "dir/x.env")));
        for bad in ["arn:aws:s3:::b", "arn:aws:ssm:::b/x", "s3://b/x", "arn:aws:s3:::/x"] {
            assert_eq!(location(bad), None, "{bad}");
        }
    }
}
