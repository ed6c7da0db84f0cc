//! Turns the doc-free tables in `specs/` into one Rust file of statics (no work at start, no allocation).
//!
//! Reads `specs/k8s-1.36.txt` (definitions), `specs/k8s-1.36-resources.txt`, `specs/gantry-resources.txt` (our own
//! kinds), `specs/metrics.txt` (definitions of metrics.k8s.io) and the protobuf tables (`proto`);
//! all describe their format in their headers. Any line that is not understood stops the build.

#[path = "build/proto.rs"]
mod proto;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

const DEFINITIONS: &str = "../../specs/k8s-1.36.txt";
const METRICS: &str = "../../specs/metrics.txt";
const RESOURCES: &str = "../../specs/k8s-1.36-resources.txt";
const GANTRY: &str = "../../specs/gantry-resources.txt";
const PROTOBUF: &str = "../../specs/k8s-1.36-protobuf.txt";
const PROTOBUF_EXTRA: &str = "../../specs/k8s-1.36-protobuf-extra.txt";

/// `(group, version, kind)`.
type Gvk<'a> = (&'a str, &'a str, &'a str);

#[derive(Default)]
struct Def<'a> {
    name: &'a str,
    scalar: Option<&'a str>,
    atomic: bool,
    gvks: Vec<Gvk<'a>>,
    fields: Vec<Field<'a>>,
}

struct Field<'a> {
    name: &'a str,
    ty: &'a str,
    required: bool,
    /// `key=value` facts.
    facts: BTreeMap<&'a str, &'a str>,
    default: &'a str,
}

struct Row<'a> {
    group: &'a str,
    words: Vec<&'a str>,
    facts: BTreeMap<&'a str, &'a str>,
    subresources: Vec<Vec<&'a str>>,
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build/proto.rs");
    let read = |path: &str| {
        println!("cargo:rerun-if-changed={path}");
        std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"))
    };
    let gantry = read(GANTRY);
    let definitions = read(DEFINITIONS) + &read(METRICS) + &own_definitions(&gantry);
    let resources = read(RESOURCES) + &gantry;
    let mut defs = parse_definitions(&definitions);
    let (groups, rows) = parse_resources(&resources, &mut defs);

    let mut out = String::new();
    let hash = fnv1a(definitions.bytes().chain(resources.bytes()));
    writeln!(
        out,
        "/// Changes whenever the tables do: for ETags.\npub const TABLE_HASH: u64 = {hash:#018x};"
    )
    .expect("a String takes all");
    emit_defs(&mut out, &defs);
    emit_resources(&mut out, &groups, &rows, &defs);
    let (numbers, extra) = (read(PROTOBUF), read(PROTOBUF_EXTRA));
    let mut tables = proto::Tables::default();
    tables.add(&numbers);
    tables.add_extra(&extra);
    tables.emit(&mut out, &defs);
    let dir = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    std::fs::write(Path::new(&dir).join("table.rs"), out).expect("OUT_DIR can be written");
}

fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// `group/version/kind`, the group "" for core.
fn gvk(text: &str) -> Gvk<'_> {
    let parts: Vec<&str> = text.split('/').collect();
    let [group, version, kind] = parts[..] else { panic!("not group/version/kind: {text}") };
    (group, version, kind)
}

fn facts<'a>(words: &[&'a str]) -> BTreeMap<&'a str, &'a str> {
    words.iter().map(|w| w.split_once('=').unwrap_or_else(|| panic!("not key=value: {w}"))).collect()
}

fn lines(text: &str) -> impl Iterator<Item = (bool, Vec<&str>)> {
    let rows = text.lines().filter(|l| !l.starts_with('#'));
    rows.map(|l| (l.starts_with(' '), l.split_whitespace().collect()))
}

/// The definitions of Gantry's own kinds, in the format of the definitions table: metadata, free `spec` and `status`.
fn own_definitions(resources: &str) -> String {
    const META: &str = "apimachinery.pkg.apis.meta.v1";
    const ANY: &str = "apimachinery.pkg.runtime.RawExtension";
    let (mut group, mut out) = ("", String::new());
    for (indented, words) in lines(resources) {
        match words[..] {
            ["group", name] => group = name,
            [version, _plural, kind, ..] if !indented => {
                let service = group.split('.').next().unwrap_or_default();
                let def = format!("dev.gantry.{service}.{version}.{kind}");
                out += &format!(
                    "def {def} gvk={group}/{version}/{kind}\n apiVersion str\n kind str\n metadata {META}.ObjectMeta\n \
                     spec {ANY}\n status {ANY}\n\
                     def {def}List gvk={group}/{version}/{kind}List\n apiVersion str\n items []{def} !\n kind str\n \
                     metadata {META}.ListMeta\n"
                );
            }
            _ => {}
        }
    }
    out
}

fn parse_definitions(text: &str) -> Vec<Def<'_>> {
    let mut defs: Vec<Def> = Vec::new();
    for (indented, words) in lines(text) {
        if !indented {
            let ["def", name, rest @ ..] = &words[..] else { panic!("{words:?}") };
            let facts = facts(rest);
            defs.push(Def {
                name,
                scalar: facts.get("is").copied(),
                atomic: facts.get("map") == Some(&"atomic"),
                gvks: facts.get("gvk").map(|list| list.split(',').map(gvk).collect()).unwrap_or_default(),
                fields: Vec::new(),
            });
            continue;
        }
        let [name, ty, rest @ ..] = &words[..] else { panic!("{words:?}") };
        let (required, rest) = match rest {
            ["!", rest @ ..] => (true, rest),
            rest => (false, rest),
        };
        let field = Field { name, ty, required, facts: facts(rest), default: "" };
        defs.last_mut().expect("a def line comes first").fields.push(field);
    }
    defs.sort_by_key(|d| d.name);
    defs
}

fn parse_resources<'a>(text: &'a str, defs: &mut [Def<'a>]) -> (Vec<&'a str>, Vec<Row<'a>>) {
    let (mut groups, mut rows): (Vec<&str>, Vec<Row>) = (Vec::new(), Vec::new());
    for (indented, words) in lines(text) {
        match &words[..] {
            _ if indented => rows.last_mut().expect("a resource line comes first").subresources.push(words),
            ["group", name] => groups.push(if *name == "-" { "" } else { name }),
            ["default", def, field, json] => {
                let def = defs.iter_mut().find(|d| d.name == *def).unwrap_or_else(|| panic!("{def}"));
                let found = def.fields.iter_mut().find(|f| f.name == *field);
                found.unwrap_or_else(|| panic!("{field}")).default = json;
            }
            [_version, _plural, _kind, "ns" | "cluster", rest @ ..] => {
                let facts = facts(&rest.iter().copied().filter(|w| *w != "legacy").collect::<Vec<_>>());
                let group = groups.last().expect("a group line comes first");
                rows.push(Row { group, words, facts, subresources: Vec::new() });
            }
            _ => panic!("{words:?}"),
        }
    }
    (groups, rows)
}

fn index(defs: &[Def], name: &str) -> usize {
    defs.binary_search_by(|d| d.name.cmp(name)).unwrap_or_else(|_| panic!("no definition {name}"))
}

/// The Rust expression of a type; inner types of lists and maps are statics named after their text.
fn type_expr(ty: &str, defs: &[Def], inner: &mut BTreeSet<String>) -> String {
    for (prefix, variant) in [("[]", "Array"), ("{}", "Map")] {
        if let Some(rest) = ty.strip_prefix(prefix) {
            let expr = type_expr(rest, defs, inner);
            inner.insert(expr.clone());
            return format!("Type::{variant}(Held::Static(&{}))", static_name(&expr));
        }
    }
    let scalar = match ty {
        "str" => "String",
        "bytes" => "Bytes",
        "i32" => "Int32",
        "i64" => "Int64",
        "f64" => "Number",
        "bool" => "Bool",
        name => {
            let at = index(defs, name);
            match defs[at].scalar {
                None => return format!("Type::Object(DefRef::Builtin({at}))"),
                Some("quantity") => "Quantity",
                Some("intstr") => "IntOrString",
                Some("time") => "Time",
                Some("microtime") => "MicroTime",
                Some("any") => "Any",
                Some(other) => panic!("is={other}"),
            }
        }
    };
    format!("Type::{scalar}")
}

fn static_name(expr: &str) -> String {
    let letters = expr.chars().filter(char::is_ascii_alphanumeric);
    format!("T_{}", letters.collect::<String>().to_uppercase())
}

/// The expression of a list whose texts may also be made at run time.
fn cow_list<'a>(items: impl Iterator<Item = &'a str>) -> String {
    let items: String = items.map(|i| format!("Cow::Borrowed({i:?}),")).collect();
    format!("Held::Static(&[{items}])")
}

fn text_list<'a>(items: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = items.map(|i| format!("{i:?}")).collect();
    format!("Held::Static(&[{}])", quoted.join(","))
}

fn field_expr(field: &Field, defs: &[Def], inner: &mut BTreeSet<String>) -> String {
    let fact = |key: &str| field.facts.get(key).copied().unwrap_or_default();
    let list_type = match fact("list") {
        "" | "atomic" => "Atomic",
        "map" => "Map",
        "set" => "Set",
        other => panic!("list={other}"),
    };
    let strategy = match fact("patch") {
        "" => "Replace",
        "replace" => "ReplaceObject",
        "merge" => "Merge",
        "retainKeys" => "RetainKeys",
        "merge,retainKeys" => "MergeRetainKeys",
        other => panic!("patch={other}"),
    };
    let map_atomic = match fact("map") {
        "" => defs.binary_search_by(|d| d.name.cmp(field.ty)).is_ok_and(|i| defs[i].atomic),
        kind => kind == "atomic",
    };
    let keys = fact("keys").split(',').filter(|k| !k.is_empty());
    format!(
        "Field{{name:Held::Static({:?}),ty:{},required:{},list_type:ListType::{list_type},list_keys:{},\
         patch_strategy:PatchStrategy::{strategy},merge_key:Held::Static({:?}),map_atomic:{map_atomic},\
         default:Held::Static({:?})}},",
        field.name,
        type_expr(field.ty, defs, inner),
        field.required,
        cow_list(keys),
        fact("mk"),
        field.default,
    )
}

fn emit_defs(out: &mut String, defs: &[Def]) {
    let (mut inner, mut table) = (BTreeSet::new(), String::new());
    for (i, def) in defs.iter().enumerate() {
        let fields: String = def.fields.iter().map(|f| field_expr(f, defs, &mut inner)).collect();
        writeln!(out, "static F{i}:[Field;{}]=[{fields}];", def.fields.len()).expect("a String takes all");
        writeln!(
            table,
            "Def{{name:Held::Static(\"io.k8s.{}\"),fields:Held::Static(&F{i}),gvks:Held::Static(&{:?}),map_atomic:{}}},",
            def.name, def.gvks, def.atomic
        )
        .expect("a String takes all");
    }
    for expr in &inner {
        writeln!(out, "static {}:Type={expr};", static_name(expr)).expect("a String takes all");
    }
    writeln!(out, "static DEFS:[Def;{}]=[{table}];", defs.len()).expect("a String takes all");
}

fn verbs(letters: &str) -> String {
    let names = letters.chars().map(|c| match c {
        'c' => "create",
        'd' => "delete",
        'D' => "deletecollection",
        'g' => "get",
        'l' => "list",
        'p' => "patch",
        'u' => "update",
        'w' => "watch",
        other => panic!("verb {other}"),
    });
    text_list(names.collect::<BTreeSet<_>>().into_iter())
}

fn subresource_expr(words: &[&str], parent: Gvk) -> String {
    let (group, version, kind) = match words.get(1).filter(|w| !w.contains('=')) {
        None => parent,
        Some(full) if full.contains('/') => gvk(full),
        Some(kind) => (parent.0, parent.1, *kind),
    };
    let letters = words.iter().find_map(|w| w.strip_prefix("verbs=")).unwrap_or("gpu");
    format!(
        "Subresource{{name:Held::Static({:?}),gvk:(Held::Static({group:?}),Held::Static({version:?}),\
         Held::Static({kind:?})),verbs:{}}},",
        words[0],
        verbs(letters)
    )
}

fn row_expr(row: &Row, defs: &[Def]) -> String {
    let [version, plural, kind, scope, ..] = row.words[..] else { panic!("{:?}", row.words) };
    let own = (row.group, version, kind);
    let fact = |key: &str| row.facts.get(key).copied();
    let body = match fact("body") {
        Some(name) => index(defs, name),
        None => {
            defs.iter().position(|d| d.gvks.contains(&own)).unwrap_or_else(|| panic!("no body of {own:?}"))
        }
    };
    let storage = fact("storage").map(|s| s.split_once('/').expect("storage=group/version"));
    let (storage_group, storage_version) = storage.unwrap_or((row.group, version));
    let list = |key: &str| cow_list(fact(key).into_iter().flat_map(|l| l.split(',')));
    let subresources: String = row.subresources.iter().map(|s| subresource_expr(s, own)).collect();
    format!(
        "ResourceRow{{gvr:Gvr::new({:?},{version:?},{plural:?}),kind:Held::Static({kind:?}),\
         singular:Held::Static({:?}),short_names:{},categories:{},namespaced:{},verbs:{},\
         subresources:Held::Static(&[{subresources}]),def:DefRef::Builtin({body}),\
         storage_version:Held::Static({storage_version:?}),storage_group:Held::Static({storage_group:?}),\
         legacy:{},gate:{:?}}},",
        row.group,
        kind.to_lowercase(),
        list("short"),
        list("cat"),
        scope == "ns",
        verbs(fact("verbs").unwrap_or("cdDglpuw")),
        row.words.contains(&"legacy"),
        fact("gate").unwrap_or_default(),
    )
}

fn emit_resources(out: &mut String, groups: &[&str], rows: &[Row], defs: &[Def]) {
    let table: String = rows.iter().map(|r| row_expr(r, defs)).collect();
    writeln!(out, "static RESOURCES:[ResourceRow;{}]=[{table}];", rows.len()).expect("a String takes all");
    writeln!(out, "static GROUPS:[&str;{}]={groups:?};", groups.len()).expect("a String takes all");
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|i| (rows[*i].group, rows[*i].words[0], rows[*i].words[1]));
    writeln!(out, "static BY_GVR:[u16;{}]={order:?};", order.len()).expect("a String takes all");
}
