//! Packs the tables of `specs/aws/` (deflate, without their comments) and writes down their `service` lines.

use flate2::{Compression, write::ZlibEncoder};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

const TABLES: &str = "../../specs/aws";

fn main() {
    println!("cargo:rerun-if-changed=build.rs\ncargo:rerun-if-changed={TABLES}");
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let entries = std::fs::read_dir(TABLES).unwrap_or_else(|e| panic!("{TABLES}: {e}"));
    let mut paths: Vec<_> = entries.map(|e| e.expect("the folder can be read").path()).collect();
    // By name, as the lookup wants it: `eks` before `eks-auth`.
    paths.sort_by_key(|p| p.file_stem().map(|s| s.to_os_string()));
    let mut heads = String::from("static TABLES: &[(Head, &[u8], usize)] = &[\n");
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let table: String =
            text.lines().filter(|l| !l.starts_with('#')).fold(String::new(), |t, l| t + l + "\n");
        let name = path.file_stem().and_then(|s| s.to_str()).expect("a table has a name").to_string();
        let mut packed = ZlibEncoder::new(Vec::new(), Compression::best());
        packed.write_all(table.as_bytes()).expect("a Vec takes all");
        let packed = packed.finish().expect("a Vec takes all");
        std::fs::write(Path::new(&out).join(format!("{name}.z")), packed).expect("OUT_DIR can be written");
        let line = table.lines().next().unwrap_or_default();
        head(&mut heads, line, &name, table.len());
    }
    heads.push_str("];\n");
    std::fs::write(Path::new(&out).join("heads.rs"), heads).expect("OUT_DIR can be written");
}

fn head(out: &mut String, line: &str, name: &str, length: usize) {
    let words: Vec<&str> = line.split(' ').collect();
    assert!(words[0] == "service" && words[1] == name, "{name}: {line}");
    let value = |key: &str| {
        words
            .iter()
            .find_map(|w| w.strip_prefix(key)?.strip_prefix('='))
            .unwrap_or_default()
            .replace("%20", " ")
    };
    let protocols: Vec<&str> = words
        .iter()
        .find_map(|w| w.strip_prefix("protocols="))
        .unwrap_or_default()
        .split(',')
        .map(|p| match p {
            "json" => "Protocol::Json",
            "rest-json" => "Protocol::RestJson",
            "query" => "Protocol::Query",
            "ec2" => "Protocol::Ec2",
            "smithy-rpc-v2-cbor" => "Protocol::Cbor",
            other => panic!("{name}: protocol {other}"),
        })
        .collect();
    writeln!(
        out,
        "(Head{{name:{name:?},api_version:{:?},protocols:&[{}],json_version:{:?},target_prefix:{:?},signing_name:{:?},\
         endpoint_prefix:{:?},xml_namespace:{:?},query_compatible:{},service_id:{:?}}},\
         include_bytes!(concat!(env!(\"OUT_DIR\"),\"/{name}.z\")),{length}),",
        value("api"),
        protocols.join(","),
        value("json"),
        value("target"),
        value("signing"),
        value("endpoint"),
        value("ns"),
        words.contains(&"compatible"),
        value("id"),
    )
    .expect("a String takes all");
}
