//! Small languages that users write and others read: rules in CEL, pages for Prometheus.

use crate::{Target, exposition};
use machinery::cel::{self, Budget, Env, Type};
use serde_json::json;
use std::collections::BTreeSet;

/// Enough for a loop over what the seeds hold; the search is for shapes, not for cost.
const COST_MAX: u64 = 20_000;
/// Longest text that is looked at.
const TEXT_MAX: usize = 4 << 10;

fn text(input: &[u8]) -> Option<&str> {
    std::str::from_utf8(input).ok().filter(|text| text.len() < TEXT_MAX)
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

pub const CEL: Target = Target {
    name: "cel",
    run: |input| {
        let Some(text) = text(input) else { return };
        let env = Env::new().var("self", Type::Dyn);
        let Ok(program) = cel::compile(&env, text) else { return };
        let object = json!({"a": [1, 2.5, "x", null, {"b": true}], "s": "aäb", "n": -7});
        let scope = [("self", cel::Value::from_json(&object))];
        let (mut first, mut second) = (Budget::new(COST_MAX), Budget::new(COST_MAX));
        let results = (program.eval(&scope, &mut first), program.eval(&scope, &mut second));
        assert_eq!(results.0.is_ok(), results.1.is_ok());
        assert_eq!(first.left(), second.left(), "the same work costs the same");
    },
    seeds: || {
        texts(&[
            "self.a.all(x, type(x) == int || x != null) && size(self.s) > 2",
            "has(self.a) ? self.a.map(x, string(x)).join(',') : 'none'",
            "self.s.matches('^a.*b$') && self.s.substring(0, 1).upperAscii() == \"A\"",
            "quantity('1Gi').isGreaterThan(quantity('5M')) && url('https://a/b').getHost() == 'a'",
            "duration('1h').getSeconds() + timestamp('2026-01-01T00:00:00Z').getFullYear() > 7u.size()",
            "{'a': 1, 'b': [r'\\d', b'\\x00', \"\"\"q\"\"\"]}.exists_one(k, k in ['a'])",
            "cel.bind(v, self.n, v * -1 + 0x1F % 3)",
        ])
    },
    words: &[
        "self",
        ".a",
        ".all(x, ",
        ".map(x, ",
        ".filter(x, ",
        ".exists(",
        "has(",
        "size(",
        "type(",
        "int(",
        "string(",
        "'%s'.format([",
        "matches('",
        "quantity('",
        "ip('",
        "cidr('",
        "semver('",
        "&&",
        "||",
        "? ",
        ": ",
        " in ",
        "[",
        "]",
        "{",
        "}",
        "(",
        ")",
        "9223372036854775807",
        "1e308",
        "-",
        "!",
        "r'",
        "b'",
        "\\u{",
        "optional.of(",
    ],
    writes: false,
};

pub const EXPOSITION: Target = Target {
    name: "exposition",
    run: |input| {
        let Some(text) = text(input) else { return };
        let wanted: BTreeSet<String> = ["a", "requests", "b_total"].map(String::from).into();
        if let Ok(page) = exposition::read(text, &wanted) {
            assert!(
                page.found.keys().all(|name| wanted.contains(name)),
                "nobody gets what was not asked for"
            );
            assert!(page.found.values().all(|metric| metric.series.len() <= exposition::SERIES_MAX));
        }
    },
    seeds: || {
        texts(&[
            "# HELP a words\n# TYPE a gauge\na{x=\"1\",y=\"q\\\"\\n\\\\\"} 3.5 1700000000000\na 7\n",
            "# TYPE requests_total counter\nrequests_total{code=\"200\"} 1e3\nrequests_total{code=\"500\",} +Inf\n",
            "# TYPE h histogram\nh_bucket{le=\"0.1\"} 1\nh_sum NaN\nh_count 2 # {t=\"1\"} 0.3\n",
        ])
    },
    words: &[
        "# TYPE ", "# HELP ", "counter", "gauge", "_total", "{", "}", "=\"", "\",", "\\n", "\n", " 1e400",
        " NaN", " -Inf", "le=\"",
    ],
    writes: false,
};
