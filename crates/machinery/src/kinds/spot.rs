//! A place in a document under validation: what stands there, its path as complaints name it, and where they go.
//!
//! Keys are relative: `""` is the place itself, `"a.b"` a field of a field; what is absent reads as null. Deliberately
//! not here: any rule of a kind.

use super::get;
use crate::field_errors::FieldErrors;
use serde_json::Value;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

static NULL: Value = Value::Null;

/// A rule for a string: its complaints, none where it fits.
pub type Rule = fn(&str) -> Vec<String>;

/// One place.
#[derive(Clone)]
pub struct Spot<'a> {
    /// What stands here.
    pub v: &'a Value,
    path: String,
    errors: &'a Cell<FieldErrors>,
}

impl<'a> Spot<'a> {
    /// The place at `path`, where `v` stands.
    pub fn new(v: &'a Value, path: &str, errors: &'a mut FieldErrors) -> Self {
        Self { v, path: path.into(), errors: Cell::from_mut(errors) }
    }

    /// The path of a field.
    pub fn at(&self, key: &str) -> String {
        if key.is_empty() { self.path.clone() } else { get::field(&self.path, key) }
    }

    fn below(&self, v: &'a Value, path: String) -> Self {
        Self { v, path, errors: self.errors }
    }

    fn value(&self, key: &str) -> &'a Value {
        value_of(self.v, key)
    }

    /// A field.
    pub fn key(&self, key: &str) -> Self {
        self.below(self.value(key), self.at(key))
    }

    /// The same value under another path.
    pub fn named(&self, path: String) -> Self {
        self.below(self.v, path)
    }

    /// A field that is there.
    pub fn opt(&self, key: &str) -> Option<Self> {
        self.has(key).then(|| self.key(key))
    }

    /// The items of a list.
    pub fn each(&self, key: &str) -> impl Iterator<Item = Spot<'a>> + use<'a> {
        let (list, path, errors) = (self.list(key), self.at(key), self.errors);
        list.iter().enumerate().map(move |(i, v)| Spot { v, path: format!("{path}[{i}]"), errors })
    }

    /// The items of a list that has at most so many; else none, and that is said.
    pub fn bounded(&self, key: &str, max: usize) -> impl Iterator<Item = Spot<'a>> + use<'a> {
        let fits = self.at_most(key, max);
        self.each(key).filter(move |_| fits)
    }

    /// The entries of a map.
    pub fn entries(&self, key: &str) -> impl Iterator<Item = (&'a str, Spot<'a>)> + use<'a> {
        let (map, path, errors) = (self.value(key).as_object(), self.at(key), self.errors);
        let all = map.into_iter().flatten();
        all.map(move |(k, v)| (k.as_str(), Spot { v, path: format!("{path}[{k}]"), errors }))
    }

    /// Is there something?
    pub fn has(&self, key: &str) -> bool {
        !self.value(key).is_null()
    }

    /// The string; "" when absent.
    pub fn text(&self, key: &str) -> &'a str {
        self.value(key).as_str().unwrap_or_default()
    }

    /// The integer.
    pub fn int(&self, key: &str) -> Option<i64> {
        self.value(key).as_i64()
    }

    /// The boolean; false when absent.
    pub fn flag(&self, key: &str) -> bool {
        self.value(key).as_bool().unwrap_or_default()
    }

    /// The list; empty when absent.
    pub fn list(&self, key: &str) -> &'a [Value] {
        self.value(key).as_array().map_or(&[], Vec::as_slice)
    }

    /// The strings of a list.
    pub fn texts(&self, key: &str) -> Vec<&'a str> {
        self.list(key).iter().filter_map(Value::as_str).collect()
    }

    /// Those of the keys that are there.
    pub fn given<'k>(&self, keys: &[&'k str]) -> Vec<&'k str> {
        keys.iter().copied().filter(|k| self.has(k)).collect()
    }

    /// Gives what is here to a check that takes the parts (and has no spots of its own).
    pub fn with<R>(&self, check: impl FnOnce(&'a Value, &str, &mut FieldErrors) -> R) -> R {
        let mut errors = self.errors.take();
        let result = check(self.v, &self.path, &mut errors);
        self.errors.set(errors);
        result
    }

    /// The complaints so far, by number.
    pub fn count(&self) -> usize {
        self.with(|_, _, errors| errors.causes().len())
    }

    /// `Required value`.
    pub fn required(&self, key: &str, why: &str) {
        self.with(|_, _, e| e.required(&self.at(key), why));
    }

    /// `Invalid value`.
    pub fn invalid(&self, key: &str, value: impl Into<Value>, why: &str) {
        self.with(|_, _, e| e.invalid(&self.at(key), value, why));
    }

    /// `Invalid value`, of what stands there.
    pub fn wrong(&self, key: &str, why: &str) {
        self.invalid(key, self.value(key).clone(), why);
    }

    /// `Invalid value` for each complaint about a string.
    pub fn invalid_all(&self, key: &str, value: &str, whys: Vec<String>) {
        if !whys.is_empty() {
            self.with(|_, _, e| e.invalid_all(&self.at(key), value, whys));
        }
    }

    /// `Unsupported value`.
    pub fn not_supported(&self, key: &str, value: impl Into<Value>, known: &[&str]) {
        self.with(|_, _, e| e.not_supported(&self.at(key), value, known));
    }

    /// `Duplicate value`.
    pub fn duplicate(&self, key: &str, value: impl Into<Value>) {
        self.with(|_, _, e| e.duplicate(&self.at(key), value));
    }

    /// `Forbidden`.
    pub fn forbidden(&self, key: &str, why: &str) {
        self.with(|_, _, e| e.forbidden(&self.at(key), why));
    }

    /// `Not found`.
    pub fn not_found(&self, key: &str, value: &str) {
        self.with(|_, _, e| e.not_found(&self.at(key), value));
    }

    /// `Too long`, where `length` is more than `max`.
    pub fn no_longer(&self, key: &str, length: usize, max: usize) {
        if length > max {
            self.with(|_, _, e| e.too_long(&self.at(key), max));
        }
    }

    /// `Too many`, where a list is longer; is it not?
    pub fn at_most(&self, key: &str, max: usize) -> bool {
        self.few(key, self.list(key).len(), max)
    }

    /// `Too many`, where `count` is more than `max`; is it not?
    pub fn few(&self, key: &str, count: usize, max: usize) -> bool {
        if count > max {
            self.with(|_, _, e| e.too_many(&self.at(key), count, max));
        }
        count <= max
    }

    /// A string that must be there.
    pub fn need(&self, key: &str) -> Option<&'a str> {
        let given = Some(self.text(key)).filter(|t| !t.is_empty());
        if given.is_none() {
            self.required(key, "");
        }
        given
    }

    /// A string that must be there and fit.
    pub fn need_like(&self, key: &str, rule: Rule) {
        if let Some(given) = self.need(key) {
            self.invalid_all(key, given, rule(given));
        }
    }

    /// A string that must fit, also where it is empty.
    pub fn like(&self, key: &str, rule: Rule) {
        self.invalid_all(key, self.text(key), rule(self.text(key)));
    }

    /// A string that must fit; none is fine.
    pub fn like_opt(&self, key: &str, rule: Rule) {
        if !self.text(key).is_empty() {
            self.like(key, rule);
        }
    }

    /// A string that must be there, of a closed set.
    pub fn one_of(&self, key: &str, known: &[&str]) {
        if let Some(given) = self.need(key) {
            self.with(|_, _, e| e.one_of(&self.at(key), given, known));
        }
    }

    /// A string of a closed set; none is fine.
    pub fn one_of_opt(&self, key: &str, known: &[&str]) {
        if !self.text(key).is_empty() {
            self.one_of(key, known);
        }
    }

    /// A string of a closed set; none is not in it.
    pub fn known(&self, key: &str, known: &[&str]) {
        self.with(|_, _, e| e.one_of(&self.at(key), self.text(key), known));
    }

    /// Integers that must not be negative, where they are there.
    pub fn non_negative(&self, keys: &[&str]) {
        for key in keys {
            self.within(key, 0..=i64::MAX, "must be greater than or equal to 0");
        }
    }

    /// An integer that must be in a range, where it is there.
    pub fn within(&self, key: &str, range: RangeInclusive<i64>, why: &str) {
        if let Some(n) = self.int(key).filter(|n| !range.contains(n)) {
            self.invalid(key, n, why);
        }
    }

    /// An integer that must be in a range; absent is 0.
    pub fn within_or_zero(&self, key: &str, range: RangeInclusive<i64>, why: &str) {
        let n = self.int(key).unwrap_or(0);
        if !range.contains(&n) {
            self.invalid(key, n, why);
        }
    }

    /// What must not change: compares as Go does (zero is absent). `old` stands where this spot stands.
    pub fn immutable(&self, key: &str, old: &Value) {
        self.with(|_, _, e| e.immutable(&self.at(key), self.value(key), value_of(old, key)));
    }

    /// Complains about a string that was seen before.
    pub fn unique<T: Ord + Into<Value> + Copy>(&self, key: &str, value: T, seen: &mut BTreeSet<T>) {
        if !seen.insert(value) {
            self.duplicate(key, value);
        }
    }

    /// A label selector; none is fine.
    pub fn selector(&self, key: &str) {
        self.opt(key).iter().for_each(super::pod::scheduling::label_selector);
    }

    /// The number of a port.
    pub fn port(&self, key: &str) {
        let n = self.int(key).unwrap_or(0);
        for words in crate::name::port_number(n) {
            self.invalid(key, n, &words);
        }
    }
}

fn value_of<'v>(v: &'v Value, key: &str) -> &'v Value {
    key.split('.').filter(|k| !k.is_empty()).fold(v, |v, k| v.get(k).unwrap_or(&NULL))
}

/// The fields that a check complains of.
#[cfg(test)]
pub(super) fn fields(check: fn(&Spot), obj: &Value) -> Vec<String> {
    let mut errors = FieldErrors::new();
    check(&Spot::new(obj, "", &mut errors));
    errors.causes().iter().map(|c| c.field.clone()).collect()
}
