//! The compiled form of a structural schema.
//!
//! Compiling never fails: `kinds::crd` has refused what makes no sense; what it let through and cannot be used (a
//! pattern too big to compile) counts as matching nothing, so that it is seen and not silently passed.

use super::rules::Compiled;
use k8s_schema::ListType;
use regex::{Regex, RegexBuilder};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Bytes of a compiled pattern: far above honest ones, far below what hurts.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// The JSON type a value must have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ty {
    /// None given.
    #[default]
    Any,
    /// An object.
    Object,
    /// A list.
    Array,
    /// A string.
    String,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// A boolean.
    Boolean,
    /// `x-kubernetes-int-or-string`.
    IntOrString,
}

impl Ty {
    /// As schemas write it; "" for none.
    pub fn name(self) -> &'static str {
        match self {
            Ty::Any => "",
            Ty::Object => "object",
            Ty::Array => "array",
            Ty::String => "string",
            Ty::Integer => "integer",
            Ty::Number => "number",
            Ty::Boolean => "boolean",
            Ty::IntOrString => "integer,string",
        }
    }

    fn parse(text: &str) -> Ty {
        let all = [Ty::Object, Ty::Array, Ty::String, Ty::Integer, Ty::Number, Ty::Boolean];
        all.into_iter().find(|t| t.name() == text).unwrap_or_default()
    }
}

/// Values beyond the listed properties.
#[derive(Debug, Default)]
pub enum Additional {
    /// None are known: they are pruned.
    #[default]
    None,
    /// Any (`additionalProperties: true`).
    Any,
    /// Of this schema: a map.
    Of(Box<Schema>),
}

/// One `x-kubernetes-validations` entry, as written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The expression.
    pub rule: String,
    /// What is said when it is false.
    pub message: String,
    /// An expression for the same.
    pub message_expression: String,
    /// `FieldValueInvalid` and the like; "" is the first of them.
    pub reason: String,
    /// A path below the value that is to blame; "" is the value itself.
    pub field_path: String,
    /// Is the rule also checked where there is no old value, with `oldSelf` optional?
    pub optional_old_self: bool,
}

/// Facts that only validation reads; most places have none.
#[derive(Debug, Default)]
pub struct Checks {
    /// `date-time`, `uuid`, …
    pub format: String,
    /// Allowed values.
    pub choices: Vec<Value>,
    /// Lower bound and whether it is excluded.
    pub minimum: Option<(f64, bool)>,
    /// Upper bound and whether it is excluded.
    pub maximum: Option<(f64, bool)>,
    /// In characters.
    pub min_length: Option<u64>,
    /// In characters.
    pub max_length: Option<u64>,
    /// Text and what it compiled to; `None` when it cannot be compiled.
    pub pattern: Option<(String, Option<Regex>)>,
    /// A divisor.
    pub multiple_of: Option<f64>,
    /// Items.
    pub min_items: Option<u64>,
    /// Items.
    pub max_items: Option<u64>,
    /// No two equal items.
    pub unique: bool,
    /// Properties.
    pub min_properties: Option<u64>,
    /// Properties.
    pub max_properties: Option<u64>,
    /// All must hold.
    pub all_of: Vec<Schema>,
    /// One must hold.
    pub any_of: Vec<Schema>,
    /// Exactly one must hold.
    pub one_of: Vec<Schema>,
    /// Must not hold.
    pub not: Option<Box<Schema>>,
    /// Expressions.
    pub rules: Vec<Rule>,
    /// The same, compiled when first needed.
    pub compiled: OnceLock<Compiled>,
}

/// A place in a structural schema.
#[derive(Debug, Default)]
pub struct Schema {
    /// The type.
    pub ty: Ty,
    /// May it be null?
    pub nullable: bool,
    /// `x-kubernetes-preserve-unknown-fields`.
    pub preserve: bool,
    /// `x-kubernetes-embedded-resource`.
    pub embedded: bool,
    /// Known properties.
    pub properties: BTreeMap<String, Schema>,
    /// Other properties.
    pub additional: Additional,
    /// The items of a list.
    pub items: Option<Box<Schema>>,
    /// Properties that must be there.
    pub required: Vec<String>,
    /// The default.
    pub default: Option<Value>,
    /// `x-kubernetes-list-type`.
    pub list_type: ListType,
    /// `x-kubernetes-list-map-keys`.
    pub list_keys: Vec<String>,
    /// `x-kubernetes-map-type: atomic`.
    pub map_atomic: bool,
    /// What validation reads.
    pub checks: Option<Box<Checks>>,
}

impl Schema {
    /// Compiles `openAPIV3Schema`, or a part of it.
    pub fn compile(json: &Value) -> Schema {
        let flag = |key: &str| json[key].as_bool().unwrap_or(false);
        let texts = |key: &str| -> Vec<String> {
            json[key]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|v| v.as_str().map(str::to_string))
                .collect()
        };
        let properties = json["properties"].as_object().into_iter().flatten();
        Schema {
            ty: if flag("x-kubernetes-int-or-string") {
                Ty::IntOrString
            } else {
                Ty::parse(json["type"].as_str().unwrap_or_default())
            },
            nullable: flag("nullable"),
            preserve: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            properties: properties.map(|(name, s)| (name.clone(), Schema::compile(s))).collect(),
            additional: match &json["additionalProperties"] {
                Value::Bool(true) => Additional::Any,
                of @ Value::Object(_) => Additional::Of(Box::new(Schema::compile(of))),
                _ => Additional::None,
            },
            items: json.get("items").filter(|i| i.is_object()).map(|i| Box::new(Schema::compile(i))),
            required: texts("required"),
            default: json.get("default").cloned(),
            list_type: match json["x-kubernetes-list-type"].as_str() {
                Some("set") => ListType::Set,
                Some("map") => ListType::Map,
                _ => ListType::Atomic,
            },
            list_keys: texts("x-kubernetes-list-map-keys"),
            map_atomic: json["x-kubernetes-map-type"] == "atomic",
            checks: Checks::compile(json),
        }
    }

    /// The schema of a property or map entry; `None` when the schema does not know it.
    pub fn property(&self, name: &str) -> Option<&Schema> {
        self.properties.get(name).or(match &self.additional {
            Additional::Of(schema) => Some(schema),
            _ => None,
        })
    }

    /// Are properties kept that the schema does not know?
    pub fn keeps_unknown(&self) -> bool {
        self.preserve || matches!(self.additional, Additional::Any)
    }

    /// Does this place or one below it carry expressions?
    pub fn has_rules(&self) -> bool {
        let below = || self.properties.values().chain(self.items.as_deref()).chain(self.additional.schema());
        self.checks.as_ref().is_some_and(|c| !c.rules.is_empty()) || below().any(Schema::has_rules)
    }
}

impl Additional {
    /// The schema of a map's values.
    pub fn schema(&self) -> Option<&Schema> {
        match self {
            Additional::Of(schema) => Some(schema),
            Additional::None | Additional::Any => None,
        }
    }
}

impl Checks {
    fn compile(json: &Value) -> Option<Box<Checks>> {
        let number = |key: &str| json[key].as_f64();
        let count = |key: &str| json[key].as_u64();
        let flag = |key: &str| json[key].as_bool().unwrap_or(false);
        let list = |key: &str| json[key].as_array().map(Vec::as_slice).unwrap_or_default();
        let schemas = |key: &str| list(key).iter().map(Schema::compile).collect::<Vec<_>>();
        let pattern = json["pattern"].as_str().map(|text| {
            let built = RegexBuilder::new(text).size_limit(PATTERN_BYTES_MAX).build();
            (text.to_string(), built.ok())
        });
        let checks = Checks {
            format: json["format"].as_str().unwrap_or_default().to_string(),
            choices: list("enum").to_vec(),
            minimum: number("minimum").map(|n| (n, flag("exclusiveMinimum"))),
            maximum: number("maximum").map(|n| (n, flag("exclusiveMaximum"))),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            pattern,
            multiple_of: number("multipleOf"),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            unique: flag("uniqueItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            all_of: schemas("allOf"),
            any_of: schemas("anyOf"),
            one_of: schemas("oneOf"),
            not: json.get("not").filter(|n| n.is_object()).map(|n| Box::new(Schema::compile(n))),
            rules: list("x-kubernetes-validations").iter().map(Rule::read).collect(),
            compiled: OnceLock::new(),
        };
        checks.any().then(|| Box::new(checks))
    }

    fn any(&self) -> bool {
        let counts = [self.min_length, self.max_length, self.min_items, self.max_items];
        !self.format.is_empty()
            || !self.choices.is_empty()
            || self.minimum.is_some()
            || self.maximum.is_some()
            || self.pattern.is_some()
            || self.multiple_of.is_some()
            || self.unique
            || counts.iter().chain(&[self.min_properties, self.max_properties]).any(Option::is_some)
            || !self.all_of.is_empty()
            || !self.any_of.is_empty()
            || !self.one_of.is_empty()
            || self.not.is_some()
            || !self.rules.is_empty()
    }
}

impl Rule {
    fn read(json: &Value) -> Rule {
        let text = |key: &str| json[key].as_str().unwrap_or_default().to_string();
        Rule {
            rule: text("rule"),
            message: text("message"),
            message_expression: text("messageExpression"),
            reason: text("reason"),
            field_path: text("fieldPath"),
            optional_old_self: json["optionalOldSelf"].as_bool().unwrap_or(false),
        }
    }
}
