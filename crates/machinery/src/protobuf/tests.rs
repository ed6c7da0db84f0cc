//! Tests: any value of any definition, Go's zeros, hostile bytes, and what real clients send.

use super::*;
use k8s_schema::proto::{self, ProtoField, ProtoForm, ProtoPart};
use k8s_schema::{Def, Field, Type};
use proptest::prelude::*;
use serde_json::{Map, json};
use std::collections::BTreeMap;

fn def(name: &str) -> DefRef {
    let at = k8s_schema::defs().iter().position(|d| d.name.ends_with(name)).unwrap();
    DefRef::Builtin(u16::try_from(at).unwrap())
}

/// Every definition with a message.
fn all() -> impl Iterator<Item = DefRef> {
    let count = u16::try_from(k8s_schema::defs().len()).unwrap();
    (0..count).map(DefRef::Builtin).filter(|d| proto::message(d).is_some())
}

/// What the table says of each numbered field, by its place in the definition.
fn numbered(table: &[ProtoField], into: &mut BTreeMap<usize, (ProtoForm, bool)>) {
    for field in table {
        match &field.part {
            ProtoPart::Embedded(inner) => numbered(inner, into),
            ProtoPart::Field { index, form, keep_zero } => {
                into.insert(usize::from(*index), (*form, *keep_zero));
            }
        }
    }
}

/// Fields of a definition with wrapper and "is a zero a value?".
fn fields(def: &DefRef) -> Vec<(&Field, ProtoForm, bool)> {
    let mut table = BTreeMap::new();
    numbered(proto::message(def).unwrap(), &mut table);
    let schema: &Def = def.get();
    table.into_iter().map(|(at, (form, keep))| (&schema.fields[at], form, keep)).collect()
}

/// Makes values of a type from a seed, without proptest's trees: definitions are recursive.
struct Maker(u64);

impl Maker {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn object(&mut self, def: &DefRef, depth: u64) -> Value {
        let mut map = Map::new();
        for (field, form, keep) in fields(def) {
            if self.below(2 + depth * depth) > 1 {
                continue;
            }
            let zero = keep || field.required;
            let value = match &field.ty {
                Type::Array(inner) => self.list(inner, form, depth),
                Type::Map(inner) => {
                    let keys = ["a", "example.com/b", "\u{e4}"].into_iter().take(1 + self.below(3) as usize);
                    keys.map(|k| (k.to_string(), self.value(inner, form, depth + 1, true))).collect()
                }
                ty => self.value(ty, form, depth, zero),
            };
            map.insert(field.name.to_string(), value);
        }
        Value::Object(map)
    }

    fn list(&mut self, items: &Type, form: ProtoForm, depth: u64) -> Value {
        (0..1 + self.below(3)).map(|_| self.value(items, form, depth + 1, true)).collect()
    }

    /// Empty, zero and false only where they are values.
    fn value(&mut self, ty: &Type, form: ProtoForm, depth: u64, zero: bool) -> Value {
        let zero = zero && self.below(4) == 0;
        let n = self.below(1 << 31) as i64 - (1 << 30);
        match ty {
            _ if zero && matches!(ty, Type::String | Type::Bytes) => "".into(),
            Type::String => ["web", "10.0.0.1", "\u{1f980}"][self.below(3) as usize].into(),
            Type::Bytes => ["AA==", "aGVsbG8=", "/+8="][self.below(3) as usize].into(),
            Type::Bool => (!zero).into(),
            Type::Int32 | Type::Int64 | Type::IntOrString if zero => 0.into(),
            Type::IntOrString if self.below(2) == 0 => "25%".into(),
            Type::Int32 | Type::IntOrString => (n | 1).into(),
            Type::Int64 => ((n << 20) | 1).into(),
            Type::Number => json!(n as f64 + 0.5),
            Type::Time => crate::time::format(jiff::Timestamp::from_second(n * 9).unwrap()).into(),
            Type::MicroTime => {
                crate::time::format_micro(jiff::Timestamp::from_microsecond(n * 9_000_001).unwrap()).into()
            }
            Type::Quantity => ["0", "100m", "1Gi", "-3"][self.below(4) as usize].into(),
            Type::Object(def) => self.object(def, depth + 1),
            Type::Array(inner) => self.list(inner, form, depth),
            Type::Map(_) => unreachable!("no map in a map"),
            Type::Any => self.wrapped(form, depth),
        }
    }

    fn wrapped(&mut self, form: ProtoForm, depth: u64) -> Value {
        let plain = self.below(2) == 0;
        match form {
            ProtoForm::Plain => unreachable!("Patch is no field"),
            ProtoForm::Raw if plain => json!({"a": [1, null, {"b": "c"}]}),
            ProtoForm::Raw => [json!(true), json!(7), json!("text")][self.below(3) as usize].clone(),
            ProtoForm::SchemaOrBool if plain => (self.below(2) == 0).into(),
            ProtoForm::SchemaOrStrings if plain => json!(["x", ""]),
            ProtoForm::SchemaOrArray if plain => {
                (0..1 + self.below(2)).map(|_| self.object(&schema_props().unwrap(), depth + 2)).collect()
            }
            _ => self.object(&schema_props().unwrap(), depth + 1),
        }
    }
}

/// Puts in what Go writes for fields that nobody set.
fn add_gos_zeros(def: &DefRef, value: &mut Value) {
    for (field, _, keep) in fields(def) {
        let slot = &mut value[&*field.name];
        if slot.is_null() && !keep && !field.required {
            *slot = match &field.ty {
                Type::String => "".into(),
                Type::Int32 | Type::Int64 | Type::IntOrString => 0.into(),
                Type::Number => json!(0.0),
                Type::Bool => false.into(),
                _ => Value::Null,
            };
        }
        match &field.ty {
            Type::Object(inner) if !slot.is_null() => add_gos_zeros(inner, slot),
            Type::Array(items) => {
                let Type::Object(inner) = &**items else { continue };
                slot.as_array_mut().into_iter().flatten().for_each(|item| add_gos_zeros(inner, item));
            }
            _ => {}
        }
    }
}

/// The first place where two values differ: they are too long to print whole.
fn difference(got: &Value, want: &Value) -> Option<String> {
    let below = |key: &str, got: &Value, want: &Value| difference(got, want).map(|d| format!("{key}.{d}"));
    match (got, want) {
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => {
            a.iter().find_map(|(key, value)| below(key, value, &b[key]))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).find_map(|(a, b)| below("[]", a, b))
        }
        _ => (got != want).then(|| format!(": {:.300} is not {:.300}", got.to_string(), want.to_string())),
    }
}

#[test]
fn any_value_of_any_definition_comes_back() {
    for def in all() {
        for seed in 0..6 {
            let value = Maker(seed * 77_777).object(&def, 0);
            let bytes = encode(&def, &value).unwrap();
            let name = &def.get().name;
            assert_eq!(difference(&decode(&def, &bytes).unwrap(), &value), None, "{name} {seed}");
            let mut zeros = value.clone();
            add_gos_zeros(&def, &mut zeros);
            let bytes = encode(&def, &zeros).unwrap();
            assert_eq!(difference(&decode(&def, &bytes).unwrap(), &value), None, "{name} {seed}, zeros");
        }
    }
}

#[test]
fn zeros_of_pointers_are_values_others_are_not_set() {
    let value = json!({
        "replicas": 0, "paused": false, "minReadySeconds": 0, "revisionHistoryLimit": 0,
        "strategy": {"type": "", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "0%"}},
        "template": {"spec": {
            "automountServiceAccountToken": false, "enableServiceLinks": false, "hostNetwork": false,
            "terminationGracePeriodSeconds": 0, "nodeName": "", "securityContext": {"runAsUser": 0},
            "containers": [{"name": "", "image": "", "stdin": false, "env": [{"name": "A", "value": ""}],
                "securityContext": {"readOnlyRootFilesystem": false, "allowPrivilegeEscalation": false}}],
        }},
    });
    let spec = def("api.apps.v1.DeploymentSpec");
    let want = json!({
        "replicas": 0, "revisionHistoryLimit": 0,
        "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": "0%"}},
        "template": {"spec": {
            "automountServiceAccountToken": false, "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 0, "securityContext": {"runAsUser": 0},
            "containers": [{"name": "", "env": [{"name": "A"}],
                "securityContext": {"readOnlyRootFilesystem": false, "allowPrivilegeEscalation": false}}],
        }},
    });
    assert_eq!(decode(&spec, &encode(&spec, &value).unwrap()).unwrap(), want);
}

/// Lines of `name, bytes in base64, JSON`: the bytes as kubectl 1.32 sent them, the JSON checked by hand.
const RECORDED: &str = include_str!("kubectl-1.32.txt");

#[test]
fn what_kubectl_sends_is_read() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut lines = String::new();
    assert_eq!(RECORDED.lines().count(), 27);
    for line in RECORDED.lines() {
        let [name, base64, want] = line.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, base64).unwrap();
        let got = object(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        lines += &format!("{name} {base64} {got}\n");
        if !update {
            assert_eq!(got.to_string(), want, "{name}");
            assert_eq!(object(&sealed(&got).unwrap()).unwrap(), got, "{name}");
        }
    }
    if update {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/protobuf/kubectl-1.32.txt");
        std::fs::write(path, lines).unwrap();
    }
}

/// A message from `(number, value)` pairs.
fn raw(parts: &[(u16, &[u8])]) -> Vec<u8> {
    let mut out = Writer::default();
    parts.iter().for_each(|(number, bytes)| out.bytes(*number, bytes));
    out.0
}

#[test]
fn envelopes() {
    let config_map = raw(&[(2, &raw(&[(1, b"k"), (2, b"v")]))]);
    let unknown = |api_version: &[u8], kind: &[u8]| {
        let parts = raw(&[(1, &raw(&[(1, api_version), (2, kind)])), (2, &config_map), (3, b""), (4, b"")]);
        [MAGIC.as_slice(), &parts].concat()
    };
    let value = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"k": "v"}});
    assert_eq!(object(&unknown(b"v1", b"ConfigMap")), Ok(value.clone()));
    assert_eq!(sealed(&value).unwrap(), unknown(b"v1", b"ConfigMap"));
    for (bytes, why) in [
        (b"{}".to_vec(), "expected prefix [107 56 115 0]"),
        (unknown(b"v1", b""), "Object 'Kind' is missing"),
        (unknown(b"v1", b"Nope"), "no kind \"Nope\" is registered for version \"v1\""),
        (unknown(b"example.com/v1", b"ConfigMap"), "no kind \"ConfigMap\""),
    ] {
        let error = object(&bytes).unwrap_err();
        assert_eq!(error.code, 400);
        assert!(error.message.contains(why), "{}", error.message);
    }
    // Every group version has delete options.
    let options = sealed(&json!({"apiVersion": "apps/v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}));
    assert_eq!(object(&options.unwrap()).unwrap()["gracePeriodSeconds"], 0);
    // Old clients evict by a version that is gone.
    let old = json!({"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": "p"}});
    assert_eq!(object(&sealed(&old).unwrap()), Ok(old));
}

#[test]
fn lists_and_watch_frames() {
    let list = json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "7"},
        "items": [{"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}]}}]});
    assert_eq!(object(&sealed(&list).unwrap()).unwrap(), list);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}});
    let frame = watch_frame("ADDED", &pod).unwrap();
    assert_eq!(frame[..4], u32::try_from(frame.len() - 4).unwrap().to_be_bytes());
    let event = decode(&def("meta.v1.WatchEvent"), &frame[4..]).unwrap();
    assert_eq!(event, json!({"type": "ADDED", "object": pod}));
}

#[test]
fn odd_but_legal_bytes_are_read() {
    let meta = def("meta.v1.ObjectMeta");
    let mut bytes = raw(&[(1, b"first"), (1, b"last")]);
    // An unknown field, a group around another one, a tag longer than it need be.
    bytes.extend([0xfa, 0x7f, 1, b'x', 0xfb, 0x7f, 0x0a, 1, b'y', 0xfc, 0x7f, 0x92, 0x00, 1, b'g']);
    assert_eq!(decode(&meta, &bytes), Ok(json!({"name": "last", "generateName": "g"})));
    // Packed or one by one.
    let context = def("core.v1.PodSecurityContext");
    let mut one_by_one = Writer::default();
    [1, 300].into_iter().for_each(|n| one_by_one.varint(4, n));
    for bytes in [one_by_one.0, raw(&[(4, &[1, 0xac, 2])])] {
        assert_eq!(decode(&context, &bytes), Ok(json!({"supplementalGroups": [1, 300]})));
    }
    // A message in two parts is merged, a later zero unsets.
    let pod = def("core.v1.Pod");
    let parts = raw(&[(1, &raw(&[(1, b"a"), (3, b"b")])), (1, &raw(&[(1, b"")]))]);
    assert_eq!(decode(&pod, &parts), Ok(json!({"metadata": {"namespace": "b"}})));
    // Go's zero time is null; an entry without a value has the zero.
    let entry = raw(&[(11, &raw(&[(1, b"k")])), (8, b"")]);
    assert_eq!(decode(&meta, &entry), Ok(json!({"labels": {"k": ""}})));
    let limits = raw(&[(1, &raw(&[(1, b"cpu")]))]);
    let want = json!({"limits": {"cpu": "0"}});
    assert_eq!(decode(&def("core.v1.ResourceRequirements"), &limits), Ok(want));
}

#[test]
fn broken_bytes_are_refused() {
    let meta = def("meta.v1.ObjectMeta");
    for bytes in [
        &[0x0a, 5, b'x'][..],   // too short
        &[0x0a],                // no length
        &[0x08, 1],             // a number for a string
        &[0x02, 0],             // field 0
        &[0x0f],                // wire type 7
        &[0x0c],                // the end of no group
        &[0xfb, 0x7f],          // a group without an end
        &[0x42, 2, 0x08, 0x80], // a time cut short
        &[0xff; 11],            // a varint without an end
    ] {
        assert_eq!(decode(&meta, bytes).unwrap_err().code, 400, "{bytes:x?}");
    }
    let far = raw(&[(8, &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f])]);
    assert!(decode(&meta, &far).unwrap_err().message.contains("out of range"));
}

#[test]
fn depth_is_bounded() {
    // Half of what the server's threads have.
    let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(check_depths).unwrap();
    thread.join().unwrap();
}

fn check_depths() {
    let schema = schema_props().unwrap();
    // Each level is a schema's `not`, one deeper in JSON.
    let nested = |depth: usize| (0..depth).fold(Vec::new(), |inner, _| raw(&[(28, &inner)]));
    assert!(decode(&schema, &nested(crate::body::DEPTH_MAX - 1)).is_ok());
    for depth in [crate::body::DEPTH_MAX, 5_000] {
        assert_eq!(decode(&schema, &nested(depth)).unwrap_err().code, 400);
    }
    let text = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let default = |depth| decode(&schema, &raw(&[(8, &raw(&[(1, text(depth).as_bytes())]))]));
    assert!(default(crate::body::DEPTH_MAX - 2).is_ok());
    assert_eq!(default(crate::body::DEPTH_MAX).unwrap_err().code, 400);
    // Documents in documents.
    let mut matryoshka = br#"{"kind":"x"}"#.to_vec();
    for _ in 0..200 {
        let list = raw(&[(2, &raw(&[(1, &matryoshka)]))]);
        let envelope = raw(&[(1, &raw(&[(1, b"v1"), (2, b"WatchEvent")])), (2, &list)]);
        matryoshka = [MAGIC.as_slice(), &envelope].concat();
    }
    assert_eq!(object(&matryoshka).unwrap_err().code, 400);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(seed: u64, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let all: Vec<DefRef> = all().collect();
        let def = &all[(seed % all.len() as u64) as usize];
        let _ = decode(def, &bytes);
        let _ = object(&[MAGIC.as_slice(), &bytes].concat());
    }

    #[test]
    fn damaged_messages_never_panic_and_read_ones_can_be_written(seed: u64, at: usize, with: u8, cut: usize) {
        let pod = def("core.v1.Pod");
        let mut bytes = encode(&pod, &Maker(seed).object(&pod, 0)).unwrap();
        if !bytes.is_empty() {
            let length = bytes.len();
            bytes[at % length] = with;
            bytes.truncate(length - cut % 3 % length);
        }
        if let Ok(value) = decode(&pod, &bytes) {
            encode(&pod, &value).unwrap();
        }
    }
}
