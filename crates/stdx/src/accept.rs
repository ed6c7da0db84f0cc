//! `Accept` headers.

/// Names and values.
pub type Parameters<'a> = Vec<(&'a str, &'a str)>;

/// Media ranges of an Accept header: type, parameters; most wanted first.
pub fn ranges(accept: &str) -> Vec<(&str, Parameters<'_>)> {
    let mut all: Vec<(u32, &str, Parameters<'_>)> = accept
        .split(',')
        .map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let parameters: Parameters<'_> = parts.filter_map(|p| p.split_once('=')).collect();
            let q = parameters.iter().find(|(k, _)| *k == "q").and_then(|(_, v)| v.parse::<f32>().ok());
            ((q.unwrap_or(1.0) * 1000.0) as u32, media, parameters)
        })
        .filter(|(q, media, _)| *q > 0 && !media.is_empty())
        .collect();
    all.sort_by_key(|(q, _, _)| std::cmp::Reverse(*q));
    all.into_iter().map(|(_, media, parameters)| (media, parameters)).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn most_wanted_first() {
        let ranges = super::ranges("a/b;q=0.2, c/d;as=X;q=0.5,e/f;q=0,,g/h");
        let parameters = vec![("as", "X"), ("q", "0.5")];
        assert_eq!(ranges, [("g/h", vec![]), ("c/d", parameters), ("a/b", vec![("q", "0.2")])]);
    }
}
