//! Expressions at work, and what is said about wrong ones.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn env() -> Env {
    let item = Type::object("Item", [("name".to_string(), Type::String), ("n".to_string(), Type::Int)]);
    let spec = [
        ("replicas".to_string(), Type::Int),
        ("name".to_string(), Type::String),
        ("items".to_string(), Type::list(item)),
        ("labels".to_string(), Type::map(Type::String)),
        ("a__dash__b".to_string(), Type::Bool),
    ];
    Env::new()
        .var("self", Type::object("Spec", spec))
        .var("any", Type::Dyn)
        .var("variables.x", Type::Int)
        .message("Object")
}

fn scope() -> BTreeMap<String, Value> {
    let me = json!({"replicas": 3, "name": "héllo", "items": [{"name": "a", "n": 1}, {"name": "b", "n": 2}],
        "labels": {"k": "v"}, "a-b": true, "unknown": 1});
    let ty = env().find("self").unwrap().clone();
    let any = Value::from_json(&json!({"s": "x", "list": [1, 2, 3], "f": 1.5, "null": null}));
    BTreeMap::from([
        ("self".into(), Value::typed(&me, &ty)),
        ("any".into(), any),
        ("variables.x".into(), Value::Int(7)),
    ])
}

fn eval(text: &str) -> Result<Value, String> {
    let program = compile(&env(), text).map_err(|e| e.to_string())?;
    program.eval(&scope(), &mut Budget::default()).map_err(|e| e.to_string())
}

/// What is true of `scope`.
const HOLDS: &[&str] = &[
    "self.replicas > 2 && self.replicas <= 3",
    "1 + 2 * 3 == 7 && (1 + 2) * 3 == 9 && -5 % 3 == -2 && 7 / 2 == 3",
    "-9223372036854775808 < 0 && 0x10 == 16 && 2u + 3u == 5u && 1.5e1 == 15.0",
    "1 < 1.5 && 2u > 1 && dyn(1) == dyn(1.0) && dyn(1) == 1u",
    "self.name == 'héllo' && self.name.size() == 5 && size(self.name) == 5",
    "self.name.substring(1, 3) == 'él' && self.name.charAt(1) == 'é' && self.name.indexOf('l') == 2",
    "self.name.lastIndexOf('l') == 3 && 'a,b'.split(',') == ['a', 'b'] && ['a', 'b'].join('-') == 'a-b'",
    "'hello hello'.replace('he', 'we', 1) == 'wello hello' && ' a '.trim() == 'a' && 'abc'.reverse() == 'cba'",
    "'abc'.matches('^a.c$') && 'a1b2'.findAll('[0-9]') == ['1', '2'] && 'a1'.find('[0-9]') == '1'",
    "self.items.all(i, i.n > 0) && self.items.exists(i, i.name == 'b') && self.items.exists_one(i, i.n == 1)",
    "self.items.map(i, i.n) == [1, 2] && self.items.filter(i, i.n > 1).size() == 1",
    "self.items.map(i, i.n > 1, i.name) == ['b']",
    "self.labels.all(k, self.labels[k] == 'v') && 'k' in self.labels && !('z' in self.labels)",
    "has(self.replicas) && !has(self.labels.z) && self.a__dash__b && self.`a-b`",
    "[1, 2].all(i, v, v == i + 1) && {'a': 1}.exists(k, v, k == 'a' && v == 1)",
    "[1, 2].transformList(i, v, v * 2) == [2, 4] && {'a': 1}.transformMap(k, v, v + 1) == {'a': 2}",
    "{'a': 1}.transformMapEntry(k, v, {v: k}) == {1: 'a'}",
    "cel.bind(x, self.replicas * 2, x + x == 12)",
    "true || 1 / 0 == 1",
    "!(1 / 0 == 1 && false)",
    "[1, 0].exists(i, 1 / i == 1) && ![1, 0].all(i, 1 / i == 2)",
    "any.s == 'x' && any.list.sum() == 6 && any.f == 1.5 && any[?'null'].hasValue()",
    "variables.x == 7",
    "any.?none.orValue('d') == 'd' && any.?s.orValue('d') == 'x' && !any.?none.?deeper.hasValue()",
    "optional.of(1).value() == 1 && optional.none().or(optional.of(2)).value() == 2",
    "any.?s.optMap(v, v + 'y').value() == 'xy' && any.?none.optFlatMap(v, optional.of(v)) == optional.none()",
    "[?any.?none, ?any.?s] == ['x'] && {?'a': any.?none} == {} && [1, 2][?5] == optional.none()",
    "timestamp('2026-01-01T00:00:00Z') + duration('1h30m') == timestamp('2026-01-01T01:30:00Z')",
    "timestamp('2026-03-05T10:20:30.5Z').getMonth() == 2 && timestamp('2026-03-05T10:20:30Z').getHours('+02:00') == 12",
    "duration('90m').getHours() == 1 && string(duration('1.5s')) == '1.5s' && duration('1h') > duration('59m')",
    "int('42') == 42 && string(1.0) == '1' && double('1e3') == 1000.0 && string(true) == 'true' && int(3.9) == 3",
    "b'abc' == bytes('abc') && b'\\xff'.size() == 1 && string(b'abc') == 'abc'",
    "type(1) == int && type('a') == string && type([]) == list",
    "[3, 1, 2].sort() == [1, 2, 3] && [1, 2].isSorted() && [1, 5].max() == 5 && [1, 1].distinct() == [1]",
    "self.items.sortBy(i, -i.n).map(i, i.n) == [2, 1] && [[1], [2]].flatten() == [1, 2] && [1, 2, 3].slice(0, 2) == [1, 2]",
    "lists.range(3) == [0, 1, 2] && [1, 2].first().value() == 1 && [1, 2].reverse() == [2, 1]",
    "sets.contains([1, 2], [2]) && sets.equivalent([1, 1], [1]) && !sets.intersects([1], [2])",
    "url('https://a.b:80/x?k=v').getPort() == '80' && isURL('/x') && !isURL('x') && url('https://[::1]:80/').getHostname() == '::1'",
    "url('https://a/?k=v%20w').getQuery()['k'] == ['v w']",
    "ip('10.0.0.1').family() == 4 && isIP('::1') && !isIP('1.2.3') && ip.isCanonical('::1') && string(ip('::1')) == '::1'",
    "cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR(cidr('10.1.0.0/16'))",
    "string(cidr('10.1.2.3/8').masked()) == '10.0.0.0/8' && cidr('::/64').prefixLength() == 64",
    "quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('500m').add(quantity('500m')).asInteger() == 1",
    "isQuantity('1Mi') && !isQuantity('x') && quantity('2').compareTo(quantity('2000m')) == 0 && quantity('1k').sub(1).asInteger() == 999",
    "semver('1.2.3').isLessThan(semver('1.10.0')) && isSemver('1.0.0-rc.1') && !isSemver('v1') && semver('v1.2', true).minor() == 2",
    "semver('1.0.0-rc.1').compareTo(semver('1.0.0')) == -1",
    "!format.dns1123Label().validate('a-b').hasValue() && format.named('dns1123Label').value().validate('A').hasValue()",
    "'%s is %d, %.2f, %x %%'.format(['a', 3, 1.5, 255]) == 'a is 3, 1.50, ff %'",
    "'%s'.format([[1, 'a', {'k': true}]]) == '[1, a, {k: true}]'",
    "math.greatest(1, 5, 3) == 5 && math.least([2.0, 1.0]) == 1.0 && math.abs(-1) == 1 && math.bitAnd(6, 3) == 2",
    "strings.quote('a\"b') == '\"a\\\\\"b\"' && r'\\d'.size() == 2 && '\\u00e9' == 'é'",
    "self.items[0].name == 'a' && any['s'] == 'x' && any.list[-1 + 1] == 1",
    "true ? true : 1 / 0 == 1",
    "Object{spec: Object.spec{replicas: 3}}.spec.replicas == 3",
    "jsonpatch.escapeKey('a/b~c') == 'a~1b~0c'",
    "// a comment\n 1 in [1, 2] && 'a' + 'b' == \"\"\"ab\"\"\"",
    "'abc'.startsWith('ab') && 'abc'.endsWith('bc') && !'abc'.startsWith('b') && 'aBé'.upperAscii() == 'ABé' && 'ABÉ'.lowerAscii() == 'abÉ'",
    "bool('true') && !bool('false') && uint(5) == 5u && uint('7') == 7u && uint(3.9) == 3u",
    "quantity('50k').asApproximateFloat() == 50000.0 && quantity('-1').sign() == -1 && quantity('0').sign() == 0",
    "quantity('50k').isInteger() && !quantity('1.5').isInteger()",
    "timestamp('2026-03-05T10:20:30.5Z').getFullYear() == 2026 && timestamp('2026-03-05T10:20:30.5Z').getDate() == 5",
    "timestamp('2026-03-05T10:20:30.5Z').getDayOfMonth() == 4 && timestamp('2026-03-05T10:20:30.5Z').getDayOfWeek() == 4",
    "timestamp('2026-03-05T10:20:30.5Z').getDayOfYear() == 63 && timestamp('2026-03-05T10:20:30.5Z').getMilliseconds() == 500",
    "timestamp('2026-03-05T10:20:30Z').getMinutes() == 20 && timestamp('2026-03-05T10:20:30Z').getSeconds() == 30",
    "duration('3730s').getMinutes() == 62 && duration('1.5s').getSeconds() == 1 && duration('1.5s').getMilliseconds() == 500",
    "url('https://u@a.b:80/x y?k').getHost() == 'a.b:80' && url('https://a/').getScheme() == 'https' && url('/x').getScheme() == ''",
    "url('https://a/with space').getEscapedPath() == '/with%20space'",
    "isCIDR('10.0.0.0/8') && !isCIDR('10.0.0.0/33') && !isCIDR('10.0.0.0')",
    "ip('127.0.0.1').isLoopback() && ip('::').isUnspecified() && ip('169.254.1.1').isLinkLocalUnicast()",
    "ip('224.0.0.1').isLinkLocalMulticast() && ip('8.8.8.8').isGlobalUnicast() && !ip('255.255.255.255').isGlobalUnicast()",
    "[1, 2].last().value() == 2 && [3, 1, 2].min() == 1 && !['b', 'a'].isSorted()",
    "semver('1.2.3').major() == 1 && semver('1.2.3').patch() == 3 && semver('1.2.3').isGreaterThan(semver('1.2.3-a'))",
    "math.bitNot(1) == -2 && math.bitOr(1, 2) == 3 && math.bitXor(3, 5) == 6 && math.bitNot(1u) == 18446744073709551614u",
    "math.bitShiftLeft(1, 2) == 4 && math.bitShiftRight(1024, 2) == 256 && math.bitShiftLeft(1, 64) == 0",
    "math.ceil(1.2) == 2.0 && math.floor(-1.2) == -2.0 && math.round(1.5) == 2.0 && math.round(-1.5) == -2.0 && math.trunc(-1.3) == -1.0",
    "math.isNaN(0.0 / 0.0) && math.isInf(-1.0 / 0.0) && math.isFinite(1.5) && !math.isFinite(1.0 / 0.0)",
    "math.sign(-42) == -1 && math.sign(0u) == 0u && math.sign(1.5) == 1.0 && math.sqrt(81) == 9.0",
    "!optional.ofNonZeroValue(0).hasValue() && optional.ofNonZeroValue('x').value() == 'x'",
    "!format.byte().validate('aGVsbG8=').hasValue() && format.byte().validate('!').hasValue()",
    "!format.date().validate('2026-01-31').hasValue() && format.date().validate('2026-02-31').hasValue()",
    "!format.datetime().validate('2026-01-31T01:02:03Z').hasValue() && format.datetime().validate('2026-01-31').hasValue()",
    "!format.dns1035Label().validate('a1').hasValue() && format.dns1035Label().validate('1a').hasValue()",
    "!format.dns1035LabelPrefix().validate('a-').hasValue() && format.dns1035LabelPrefix().validate('1-').hasValue()",
    "!format.dns1123LabelPrefix().validate('1-').hasValue() && format.dns1123LabelPrefix().validate('-1').hasValue()",
    "!format.dns1123Subdomain().validate('a.b').hasValue() && format.dns1123Subdomain().validate('a..b').hasValue()",
    "!format.dns1123SubdomainPrefix().validate('a.b-').hasValue() && format.dns1123SubdomainPrefix().validate('A').hasValue()",
    "!format.labelValue().validate('a_B.1').hasValue() && format.labelValue().validate('-').hasValue()",
    "!format.qualifiedName().validate('a.b/C_d').hasValue() && format.qualifiedName().validate('a/b/c').hasValue()",
    "!format.uri().validate('https://a/b').hasValue() && format.uri().validate('a b').hasValue()",
    "!format.uuid().validate('123e4567-e89b-12d3-a456-426614174000').hasValue() && format.uuid().validate('123').hasValue()",
];

#[test]
fn what_holds() {
    for text in HOLDS {
        assert_eq!(eval(text), Ok(Value::Bool(true)), "{text}");
    }
}

/// A function that no expression above calls is one that nobody tried.
#[test]
fn every_function_is_tried() {
    let named = table::names().filter(|name| name.starts_with(char::is_alphabetic));
    // What the authorizer is asked is tried beside it; macros have names that nobody can write.
    let source = include_str!("tests.rs");
    let tried = |name: &&str| name.contains('@') || source.contains(&format!("{name}("));
    let untried: Vec<&str> = named.filter(|name| !tried(name)).collect();
    assert_eq!(untried, Vec::<&str>::new());
}

#[test]
fn failures_are_upstreams() {
    for (text, expected) in [
        ("1 / 0 == 1", "division by zero"),
        ("any.none == 1", "no such key: none"),
        ("any.list[5] == 1", "index out of bounds: 5"),
        ("9223372036854775807 + 1 == 1", "integer overflow"),
        ("any.s > 1", "no such overload"),
        ("any.s && true", "no such overload"),
        ("optional.none().value() == 1", "optional.none() dereference"),
        ("duration('x') == duration('1s')", "time: invalid duration \"x\""),
        ("[1, 2].all(i, 1 / (i - 1) == 1)", "division by zero"),
    ] {
        assert_eq!(eval(text), Err(expected.to_string()), "{text}");
    }
}

#[test]
fn complaints_point_at_the_place() {
    for (text, expected) in [
        ("self.nope > 1", "ERROR: <input>:1:5: undefined field 'nope'\n | self.nope > 1\n | ....^"),
        (
            "self.name > 1",
            "ERROR: <input>:1:11: found no matching overload for '_>_' applied to '(string, int)'\n | self.name > 1\n | ..........^",
        ),
        (
            "1 +\n nope",
            "ERROR: <input>:2:2: undeclared reference to 'nope' (in container '')\n |  nope\n | .^",
        ),
        (
            "self.name.nope()",
            "ERROR: <input>:1:11: undeclared reference to 'nope' (in container '')\n | self.name.nope()\n | ..........^",
        ),
        (
            "1 +",
            "ERROR: <input>:1:4: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', IDENTIFIER, literal}\n | 1 +\n | ...^",
        ),
        ("has(1)", "ERROR: <input>:1:1: invalid argument to has() macro\n | has(1)\n | ^"),
    ] {
        assert_eq!(compile(&env(), text).unwrap_err().to_string(), expected);
    }
    for text in [
        "'a",
        "1 2",
        "[1",
        "f(",
        "a.b.",
        "if",
        "1 ? 2",
        "{1: 2, 3}",
        "self.name ? 1 : 2",
        "'a'.matches('(')",
        "",
        "@",
        "9223372036854775808",
    ] {
        assert!(compile(&env(), text).is_err(), "{text}");
    }
}

#[test]
fn types_are_known() {
    for (text, expected) in [
        ("self.items.map(i, i.n)", "list(int)"),
        ("any.x", "dyn"),
        ("self.?name", "optional_type(string)"),
        ("{'a': [1.0]}", "map(string, list(double))"),
        ("quantity('1')", "kubernetes.Quantity"),
        ("self.name == '' ? 1 : 2", "int"),
        ("timestamp('x') - timestamp('x')", "duration"),
    ] {
        assert_eq!(compile(&env(), text).unwrap().output().to_string(), expected, "{text}");
    }
    assert!(compile(&env(), "self.name == 'x'").unwrap().uses("self"));
    assert!(!compile(&env(), "[1].all(self, self == 1)").unwrap().uses("self"));
}

#[test]
fn nothing_runs_away() {
    let big = "[1,2,3,4,5,6,7,8,9,10].all(a, ".repeat(8) + "true" + &")".repeat(8);
    let program = compile(&env(), &big).unwrap();
    let mut budget = Budget::default();
    assert_eq!(program.eval(&scope(), &mut budget).unwrap_err(), EvalError::CallCost);
    assert!(budget.left() <= OBJECT_COST_MAX - CALL_COST_MAX);
    let mut little = Budget::new(5);
    assert_eq!(program.eval(&scope(), &mut little).unwrap_err(), EvalError::Budget);
    let doubled = (0..50).fold("x".to_string(), |body, i| format!("cel.bind(x, [x, x, {i}], {body})"));
    let doubled = format!("cel.bind(x, [1], ({doubled}) == ({doubled}))");
    let program = compile(&env(), &doubled).unwrap();
    assert_eq!(program.eval(&scope(), &mut Budget::default()).unwrap_err(), EvalError::CallCost);
    for text in [
        "(".repeat(5_000),
        "[".repeat(5_000),
        "!".repeat(5_000) + "true",
        "1+".repeat(5_000) + "1",
        "a.".repeat(5_000) + "a",
    ] {
        let _ = compile(&env(), &text);
    }
    assert!(compile(&env(), &("true && ".repeat(5_000) + "true")).is_ok(), "flat chains are fine");
}

#[test]
fn an_authorizer_is_asked() {
    struct Pods;
    impl Authority for Pods {
        fn decide(&self, inquiry: &Inquiry) -> Result<(bool, String), String> {
            if inquiry.verb == "break" {
                return Err("broken".into());
            }
            Ok((inquiry.resource == "pods" && inquiry.namespace == "d", format!("for {}", inquiry.verb)))
        }
    }
    let env = Env::new()
        .var("authorizer", Type::Library("authorizer"))
        .var("authorizer.requestResource", Type::Library("resourcecheck"));
    let pods = std::sync::Arc::new(Pods);
    let inquiry = Inquiry { resource: "pods".into(), namespace: "d".into(), ..Inquiry::default() };
    let scope = [
        ("authorizer", authorizer(pods.clone())),
        ("authorizer.requestResource", request_resource(pods, inquiry)),
    ];
    for text in [
        "authorizer.group('').resource('pods').namespace('d').check('create').allowed()",
        "!authorizer.group('').resource('nodes').check('create').allowed()",
        "authorizer.requestResource.check('get').reason() == 'for get'",
        "authorizer.path('/x').check('break').errored()",
        "authorizer.path('/x').check('break').error() != ''",
        "authorizer.group('').resource('pods').subresource('log').namespace('d').name('p').check('create').allowed()",
        "authorizer.group('').resource('pods').namespace('d').fieldSelector('a=b').labelSelector('c').check('create').allowed()",
        "!authorizer.serviceAccount('d', 'x').group('').resource('nodes').check('create').allowed()",
    ] {
        let program = compile(&env, text).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(program.eval(&scope, &mut Budget::default()), Ok(Value::Bool(true)), "{text}");
    }
}

#[test]
fn json_comes_and_goes() {
    let json = json!({"a": [1, 2.5, "x", null, true], "b": {"c": -1}});
    assert_eq!(Value::from_json(&json).to_json().unwrap(), json);
    assert_eq!(
        eval("Object{spec: Object.spec{replicas: 3}}").unwrap().to_json().unwrap(),
        json!({"spec": {"replicas": 3}})
    );
}

proptest! {
    /// Words of the language in any order: an answer or a complaint, never a panic.
    #[test]
    fn any_words_are_borne(words in prop::collection::vec(prop::sample::select(vec![
        "self", ".name", ".items", ".labels", "any", ".list", "[", "]", "(", ")", "{", "}", "?", ":", ".?x", "[?", "+", "-", "*", "/", "%",
        "==", "<", "&&", "||", "!", "in", "1", "0", "-1", "1.5", "2u", "'é'", "'a'", "b'a'", "true", "null", ",", ".map(i, i)", ".all(i, i > 0)",
        ".size()", ".split('')", ".substring(1)", ".indexOf('a', 1)", ".lastIndexOf('a', 1)", "duration('1h')", "timestamp('2026-01-01T00:00:00Z')",
        ".format([1])", ".orValue(1)", "quantity('1')", "has(any.x)", "cel.bind(x, 1, x)", "i", "x", ".sum()", ".replace('', 'b')", "9223372036854775807",
    ]), 0..12)) {
        if let Ok(program) = compile(&env(), &words.join(" ")) {
            let _ = program.eval(&scope(), &mut Budget::default());
        }
    }

    #[test]
    fn any_text_is_borne(text in "\\PC{0,40}") {
        let _ = compile(&env(), &text);
    }
}
