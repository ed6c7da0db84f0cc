//! The protobuf part of the tables: one list of numbered fields a definition, as Rust statics.
//!
//! Reads `specs/k8s-1.36-protobuf.txt` and `specs/k8s-1.36-protobuf-extra.txt`; their headers tell the format.

use super::{Def, Field, lines};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Messages by name: field (or `@message`) and number.
pub type Messages<'a> = BTreeMap<&'a str, Vec<(&'a str, u16)>>;

/// What both tables say.
#[derive(Default)]
pub struct Tables<'a> {
    messages: Messages<'a>,
    keep: BTreeSet<(&'a str, &'a str)>,
}

impl<'a> Tables<'a> {
    /// Adds the extracted table.
    pub fn add(&mut self, text: &'a str) {
        for (_, words) in lines(text) {
            self.add_tags(&words);
        }
    }

    /// Adds the table kept by hand.
    pub fn add_extra(&mut self, text: &'a str) {
        for (_, words) in lines(text) {
            match words[..] {
                ["tags", ref rest @ ..] => self.add_tags(rest),
                ["keep", message, ref fields @ ..] => {
                    self.keep.extend(fields.iter().map(|field| (message, *field)));
                }
                _ => panic!("{words:?}"),
            }
        }
    }

    fn add_tags(&mut self, words: &[&'a str]) {
        let fields = self.messages.entry(words[0]).or_default();
        for word in &words[1..] {
            let (name, number) = word.rsplit_once('=').unwrap_or_else(|| panic!("{word}"));
            fields.push((name, number.parse().unwrap_or_else(|e| panic!("{word}: {e}"))));
        }
        fields.sort_by_key(|f| f.1);
    }

    /// Writes `PROTO`, parallel to `DEFS`.
    pub fn emit(&self, out: &mut String, defs: &[Def]) {
        let mut used = BTreeSet::new();
        let mut rows = String::new();
        for def in defs {
            if def.scalar.is_none() && self.messages.contains_key(def.name) {
                write!(rows, "Some(&{}),", self.message(def.name, def, &mut used))
                    .expect("a String takes all");
            } else {
                rows.push_str("None,");
            }
        }
        for (message, field) in &self.keep {
            assert!(used.contains(&(*message, *field)), "keep {message} {field}: no such field");
        }
        writeln!(out, "pub(crate) static PROTO:[Option<&[ProtoField]>;{}]=[{rows}];", defs.len())
            .expect("a String takes all");
    }

    fn message(&self, name: &'a str, def: &Def<'a>, used: &mut BTreeSet<(&'a str, &'a str)>) -> String {
        let fields = self.messages.get(name).unwrap_or_else(|| panic!("no message {name}"));
        let mut list = String::new();
        for (field, number) in fields {
            used.insert((name, field));
            let part = match field.strip_prefix('@') {
                Some(inner) => format!("ProtoPart::Embedded(&{})", self.message(inner, def, used)),
                None => {
                    let at = def.fields.iter().position(|f| f.name == *field);
                    let at = at.unwrap_or_else(|| panic!("{name}: {} has no field {field}", def.name));
                    let (form, keep) = (form(&def.fields[at]), self.keep.contains(&(name, *field)));
                    format!("ProtoPart::Field{{index:{at},form:ProtoForm::{form},keep_zero:{keep}}}")
                }
            };
            write!(list, "ProtoField{{number:{number},part:{part}}},").expect("a String takes all");
        }
        format!("[{list}]")
    }
}

/// How the field's innermost value is wrapped.
fn form(field: &Field) -> &'static str {
    let inner = field.ty.trim_start_matches("[]").trim_start_matches("{}");
    match inner.rsplit('.').next().unwrap_or_default() {
        "FieldsV1" | "JSON" | "RawExtension" => "Raw",
        "JSONSchemaPropsOrArray" => "SchemaOrArray",
        "JSONSchemaPropsOrBool" => "SchemaOrBool",
        "JSONSchemaPropsOrStringArray" => "SchemaOrStrings",
        _ => "Plain",
    }
}
