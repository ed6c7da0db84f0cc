//! `x-kubernetes-validations`: expressions over a custom object and its former self.
//!
//! A place's rules are compiled when first needed and kept with its schema. A rule that names `oldSelf` only runs where
//! there is an old value, unless it takes an optional one; a rule that does not is not asked again about a value that
//! did not change (ratcheting). All rules together have one budget an object. Words are upstream's.

use super::costs::{self, Costs};
use super::prune::join;
use super::schema::{Additional, Rule, Schema, Ty};
use super::validate::counterpart;
use crate::cel::{self, Budget, CompileError, Env, EvalError, Program, Type, escape};
use crate::field_errors::FieldErrors;
use crate::kinds::get::same_exactly;
use k8s_schema::ListType;
use serde_json::{Value, json};

/// Bytes of a message that an expression makes (upstream's limit).
const MESSAGE_MAX: usize = 5 << 10;
/// Complaints that keep rules from running: the value may not be what they expect.
const BLOCKING: [&str; 4] =
    ["FieldValueRequired", "FieldValueTooLong", "FieldValueTooMany", "FieldValueTypeInvalid"];

/// The compiled rules of one place.
#[derive(Debug)]
pub struct Compiled {
    ty: Type,
    rules: Vec<One>,
}

#[derive(Debug)]
struct One {
    rule: Result<Program, CompileError>,
    message: Option<Result<Program, CompileError>>,
    /// Does it compare with the old value?
    transition: bool,
}

impl Compiled {
    /// The rules of a place; `root` of an object with its own kind and metadata.
    pub fn of(schema: &Schema, rules: &[Rule], root: bool) -> Compiled {
        let ty = type_of(schema, root, "selfType").unwrap_or(Type::Dyn);
        let one = |rule: &Rule| {
            let old = if rule.optional_old_self { Type::optional(ty.clone()) } else { ty.clone() };
            let env = Env::new().var("self", ty.clone()).var("oldSelf", old);
            let program = cel::compile(&env, &rule.rule).and_then(|p| of_type(p, &Type::Bool, BOOL));
            let message = Some(rule.message_expression.as_str()).filter(|m| !m.is_empty());
            let message =
                message.map(|m| cel::compile(&env, m).and_then(|p| of_type(p, &Type::String, STRING)));
            One { transition: program.as_ref().is_ok_and(|p| p.uses("oldSelf")), rule: program, message }
        };
        Compiled { rules: rules.iter().map(one).collect(), ty }
    }
}

const BOOL: &str = "cel expression must evaluate to a bool";
const STRING: &str = "messageExpression must evaluate to a string";

fn of_type(program: Program, wanted: &Type, words: &str) -> Result<Program, CompileError> {
    if program.output() == wanted { Ok(program) } else { Err(CompileError(words.to_string())) }
}

/// The type of a place, as expressions see it; `None` where they cannot see it.
fn type_of(schema: &Schema, root: bool, name: &str) -> Option<Type> {
    let format = schema.checks.as_ref().map_or("", |c| c.format.as_str());
    Some(match schema.ty {
        Ty::IntOrString => Type::Dyn,
        Ty::Array => Type::list(type_of(schema.items.as_deref()?, false, &format!("{name}.@idx"))?),
        Ty::Object | Ty::Any if root => Type::object(name, fields(schema, root, name)),
        Ty::Object => match &schema.additional {
            Additional::Of(below) => Type::map(type_of(below, below.embedded, &format!("{name}.@elem"))?),
            _ => Type::object(name, fields(schema, root, name)),
        },
        Ty::String => match format {
            "byte" => Type::Bytes,
            "duration" => Type::Duration,
            "date" | "date-time" => Type::Timestamp,
            _ => Type::String,
        },
        Ty::Boolean => Type::Bool,
        Ty::Number => Type::Double,
        Ty::Integer => Type::Int,
        Ty::Any => return None,
    })
}

fn fields(schema: &Schema, root: bool, name: &str) -> Vec<(String, Type)> {
    let own = schema.properties.iter().filter_map(|(key, below)| {
        let escaped = escape(key)?;
        Some((escaped, type_of(below, below.embedded, &format!("{name}.{key}"))?))
    });
    let mut all: Vec<(String, Type)> = own.collect();
    if root {
        let text = |key: &str| (key.to_string(), Type::String);
        let metadata = Type::object(&format!("{name}.metadata"), [text("name"), text("generateName")]);
        all.extend([text("apiVersion"), text("kind"), ("metadata".to_string(), metadata)]);
    }
    all
}

/// Runs the rules of a whole object, metadata included, unless earlier complaints forbid it.
pub fn validate(new: &Value, schema: &Schema, old: Option<&Value>, errors: &mut FieldErrors) {
    if !schema.has_rules() {
        return;
    }
    if errors.causes().iter().any(|c| BLOCKING.contains(&c.reason.as_str())) {
        let words = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
        return errors.invalid("<nil>", Value::Null, words);
    }
    let mut walk = Walk { budget: Budget::default(), errors, stopped: false };
    walk.place(new, schema, old, (true, ""));
}

struct Walk<'a> {
    budget: Budget,
    errors: &'a mut FieldErrors,
    stopped: bool,
}

impl Walk<'_> {
    fn place(&mut self, value: &Value, schema: &Schema, old: Option<&Value>, (root, path): (bool, &str)) {
        if self.stopped || (value.is_null() && !schema.nullable) {
            return;
        }
        if let Some(checks) = schema.checks.as_ref().filter(|c| !c.rules.is_empty()) {
            let compiled = checks.compiled.get_or_init(|| Compiled::of(schema, &checks.rules, root));
            self.rules(value, (schema, &checks.rules, compiled), old, path);
        }
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    if let Some(below) = schema.property(key) {
                        let old = old.and_then(|o| o.get(key));
                        let keyed = schema.additional.schema().is_some();
                        let at = if keyed { format!("{path}[{key}]") } else { join(path, key) };
                        self.place(value, below, old, (below.embedded, &at));
                    }
                }
            }
            Value::Array(items) => {
                let Some(below) = &schema.items else { return };
                for (index, item) in items.iter().enumerate() {
                    let old = old.and_then(|old| counterpart(item, schema, old));
                    self.place(item, below, old, (below.embedded, &format!("{path}[{index}]")));
                }
            }
            _ => {}
        }
    }

    fn rules(
        &mut self,
        value: &Value,
        (schema, rules, compiled): (&Schema, &[Rule], &Compiled),
        old: Option<&Value>,
        path: &str,
    ) {
        let unchanged = old.is_some_and(|old| same_exactly(old, value));
        let this = cel::Value::typed(value, &compiled.ty);
        let before = old.map(|old| cel::Value::typed(old, &compiled.ty));
        let path = if path.is_empty() { "<nil>" } else { path };
        let kind = if schema.ty == Ty::IntOrString { "" } else { schema.ty.name() };
        for (rule, one) in rules.iter().zip(&compiled.rules) {
            let idle = if one.transition { before.is_none() && !rule.optional_old_self } else { unchanged };
            if self.stopped || idle {
                continue;
            }
            let before = match (&before, rule.optional_old_self) {
                (Some(value), true) => cel::Value::some(value.clone()),
                (None, true) => cel::Value::NONE,
                (value, false) => value.clone().unwrap_or(cel::Value::Null),
            };
            let scope = [("self", this.clone()), ("oldSelf", before)];
            let Err(why) = self.run(rule, one, &scope) else { continue };
            match why {
                Broken::Rule(message) => self.complain(rule, (value, kind), path, &message),
                Broken::Failed(message) => self.errors.invalid(path, kind, &message),
            }
        }
    }

    /// Runs one rule; what is to be said when it does not hold.
    fn run(&mut self, rule: &Rule, one: &One, scope: &[(&str, cel::Value); 2]) -> Result<(), Broken> {
        let text = shown(rule);
        let program = match &one.rule {
            Ok(program) => program,
            Err(error) => return Err(Broken::Failed(format!("rule compile error: {error}"))),
        };
        match program.eval(scope, &mut self.budget) {
            Ok(cel::Value::Bool(true)) => Ok(()),
            Ok(_) => Err(Broken::Rule(self.message(rule, one, scope))),
            Err(EvalError::Failed(why)) if why.starts_with("no such overload") => {
                Err(Broken::Failed(format!(
                    "'{why}': call arguments did not match a supported operator, function or macro signature for rule: {text}"
                )))
            }
            Err(EvalError::Failed(why)) => Err(Broken::Failed(format!("{why} evaluating rule: {text}"))),
            Err(error @ EvalError::CallCost) => {
                self.stopped = true;
                let words = "no further validation rules will be run due to call cost exceeds limit for rule";
                Err(Broken::Failed(format!("'{error}': {words}: {text}")))
            }
            Err(error @ EvalError::Budget) => {
                self.stopped = true;
                Err(Broken::Failed(error.to_string()))
            }
        }
    }

    fn message(&mut self, rule: &Rule, one: &One, scope: &[(&str, cel::Value); 2]) -> String {
        if let Some(Ok(program)) = &one.message
            && let Ok(made) = program.eval(scope, &mut self.budget)
            && let Some(made) = made.as_str().map(str::trim)
            && !made.is_empty()
            && made.len() <= MESSAGE_MAX
            && !made.contains('\n')
        {
            return made.to_string();
        }
        match rule.message.trim() {
            "" => format!("failed rule: {}", rule.rule.trim()),
            message => message.to_string(),
        }
    }

    fn complain(&mut self, rule: &Rule, (value, kind): (&Value, &str), path: &str, message: &str) {
        let path = match rule.field_path.replace("['", "[").replace("']", "]") {
            below if below.is_empty() => path.to_string(),
            below if path == "<nil>" => below.trim_start_matches('.').to_string(),
            below => format!("{path}{below}"),
        };
        match rule.reason.as_str() {
            "FieldValueForbidden" => self.errors.forbidden(&path, message),
            "FieldValueRequired" => self.errors.required(&path, message),
            "FieldValueDuplicate" => self.errors.duplicate(&path, value.clone()),
            _ => self.errors.invalid(&path, kind, message),
        }
    }
}

enum Broken {
    /// It is false: its message.
    Rule(String),
    /// It could not be evaluated.
    Failed(String),
}

fn shown(rule: &Rule) -> &str {
    let text = if rule.message.is_empty() { &rule.rule } else { &rule.message };
    text.trim()
}

/// Checks the rules of a schema when its definition is written. `path` is where it stands in the definition.
pub fn check(schema: &Value, path: &str, errors: &mut FieldErrors) {
    let schema = Schema::compile(schema);
    if schema.has_rules() {
        let mut costs = Costs::default();
        check_place(&schema, Place { root: true, lost: None, times: Some(1) }, path, errors, &mut costs);
        costs.tell(path, errors);
    }
}

/// Where a place stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    root: bool,
    /// The list that keeps it from having a counterpart in the old object.
    lost: Option<&'a str>,
    /// How many of it there may be; `None`: as many as a request can hold.
    times: Option<u64>,
}

impl<'a> Place<'a> {
    /// The place of a property, of a map's values or of a list's items.
    fn below(self, schema: &Schema, most: Option<u64>) -> Place<'a> {
        let times = self.times.zip(most).map(|(times, most)| times.saturating_mul(most));
        Place { root: schema.embedded, times, ..self }
    }
}

fn check_place(schema: &Schema, place: Place<'_>, path: &str, errors: &mut FieldErrors, costs: &mut Costs) {
    let Place { root, lost, times } = place;
    let rules = schema.checks.as_ref().map(|c| c.rules.as_slice()).unwrap_or_default();
    let compiled = Compiled::of(schema, rules, root);
    let own = (!rules.is_empty()).then(|| costs::own(schema));
    for (i, (rule, one)) in rules.iter().zip(&compiled.rules).enumerate() {
        let at = format!("{path}.x-kubernetes-validations[{i}]");
        let programs = [("rule", Some(&one.rule)), ("messageExpression", one.message.as_ref())];
        for (what, program) in programs {
            if let (Some(Ok(program)), Some(own)) = (program, &own) {
                costs.add((program, own), times, (what, &at), errors);
            }
        }
        let value = json!({"rule": rule.rule, "message": rule.message});
        match &one.rule {
            _ if rule.rule.trim().is_empty() => {}
            Err(error) if error.0 == BOOL => errors.invalid(&format!("{at}.rule"), value, BOOL),
            Err(error) => {
                errors.invalid(&format!("{at}.rule"), value, &format!("compilation failed: {error}"))
            }
            Ok(_) if one.transition && lost.is_some() => {
                let words = "oldSelf cannot be used on the uncorrelatable portion of the schema within";
                let words = format!("{words} {}", lost.unwrap_or_default());
                errors.invalid(&format!("{at}.rule"), rule.rule.as_str(), &words);
            }
            Ok(_) if rule.optional_old_self && !one.transition => {
                let words = "must not be set if oldSelf is not used in rule";
                errors.invalid(&format!("{at}.optionalOldSelf"), true, words);
            }
            Ok(_) => {}
        }
        if let Some(Err(error)) = &one.message {
            let words =
                if error.0 == STRING { error.to_string() } else { format!("compilation failed: {error}") };
            errors.invalid(&format!("{at}.messageExpression"), rule.message_expression.as_str(), &words);
        }
        if !rule.field_path.is_empty() && !leads_somewhere(schema, &rule.field_path) {
            let words = "fieldPath must be a valid path: does not refer to a valid field";
            errors.invalid(&format!("{at}.fieldPath"), rule.field_path.as_str(), words);
        }
    }
    for (key, below) in &schema.properties {
        let at = format!("{path}.properties[{key}]");
        check_place(below, place.below(below, Some(1)), &at, errors, costs);
    }
    let checks = schema.checks.as_deref();
    if let Some(below) = schema.additional.schema() {
        let most = checks.and_then(|c| c.max_properties);
        let at = format!("{path}.additionalProperties");
        check_place(below, place.below(below, most), &at, errors, costs);
    }
    if let Some(below) = &schema.items {
        // Items of other lists have no counterpart in the old list.
        let lost = lost.or((schema.list_type != ListType::Map).then_some(path));
        let most = checks.and_then(|c| c.max_items);
        let place = Place { lost, ..place.below(below, most) };
        check_place(below, place, &format!("{path}.items"), errors, costs);
    }
}

/// Does `.a['b'].c` name a field below?
fn leads_somewhere(schema: &Schema, path: &str) -> bool {
    let mut rest = path;
    let mut at = schema;
    while !rest.is_empty() {
        let (name, after) = if let Some(quoted) = rest.strip_prefix("['") {
            let Some((name, after)) = quoted.split_once("']") else { return false };
            (name, after)
        } else {
            let Some(plain) = rest.strip_prefix('.') else { return false };
            plain.split_at(plain.find(['.', '[']).unwrap_or(plain.len()))
        };
        let Some(below) = at.property(name) else { return false };
        (at, rest) = (below, after);
    }
    true
}
