//! Types of expressions, and the notation in which the function table writes signatures.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A type.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// Known only at run time.
    Dyn,
    /// `null`
    Null,
    /// A boolean.
    Bool,
    /// 64 bits, signed.
    Int,
    /// 64 bits, unsigned.
    Uint,
    /// A floating-point number.
    Double,
    /// Text.
    String,
    /// Bytes.
    Bytes,
    /// A point in time.
    Timestamp,
    /// A span of time.
    Duration,
    /// The type of types.
    Type,
    /// A list.
    List(Arc<Type>),
    /// A map.
    Map(Arc<Type>, Arc<Type>),
    /// An object with known fields.
    Object(Arc<ObjectType>),
    /// A value or none.
    Optional(Arc<Type>),
    /// A library's own type, by its short name in the table (`quantity`, `ip`, …).
    Library(&'static str),
    /// A type parameter of a signature.
    Param(char),
}

/// An object's fields.
#[derive(Debug, Default)]
pub struct ObjectType {
    /// The name that messages show.
    pub name: String,
    /// Fields by their escaped name ([`escape`]).
    pub fields: BTreeMap<String, Type>,
}

impl PartialEq for ObjectType {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && (std::ptr::eq(self, other) || self.fields == other.fields)
    }
}

/// Short names of library types and the names that CEL shows.
pub const LIBRARY: &[(&str, &str)] = &[
    ("ip", "net.IP"),
    ("cidr", "net.CIDR"),
    ("url", "kubernetes.URL"),
    ("quantity", "kubernetes.Quantity"),
    ("semver", "kubernetes.Semver"),
    ("format", "kubernetes.NamedFormat"),
    ("authorizer", "kubernetes.authorization.Authorizer"),
    ("pathcheck", "kubernetes.authorization.PathCheck"),
    ("groupcheck", "kubernetes.authorization.GroupCheck"),
    ("resourcecheck", "kubernetes.authorization.ResourceCheck"),
    ("decision", "kubernetes.authorization.Decision"),
];

const PLAIN: &[(&str, Type)] = &[
    ("dyn", Type::Dyn),
    ("null_type", Type::Null),
    ("bool", Type::Bool),
    ("int", Type::Int),
    ("uint", Type::Uint),
    ("double", Type::Double),
    ("string", Type::String),
    ("bytes", Type::Bytes),
    ("timestamp", Type::Timestamp),
    ("duration", Type::Duration),
    ("type", Type::Type),
];

impl Type {
    /// A list of these.
    pub fn list(of: Type) -> Type {
        Type::List(Arc::new(of))
    }

    /// A map from text to these.
    pub fn map(of: Type) -> Type {
        Type::Map(Arc::new(Type::String), Arc::new(of))
    }

    /// One of these or none.
    pub fn optional(of: Type) -> Type {
        Type::Optional(Arc::new(of))
    }

    /// An object with these fields.
    pub fn object(name: &str, fields: impl IntoIterator<Item = (String, Type)>) -> Type {
        Type::Object(Arc::new(ObjectType { name: name.to_string(), fields: fields.into_iter().collect() }))
    }

    /// Reads the table's notation: `list<A>`, `map<string, int>`, `optional<quantity>`. Only for texts of this
    /// program: what it does not know is `Dyn`.
    pub fn read(text: &str) -> Type {
        let text = text.trim();
        let inner = |head: &str| text.strip_prefix(head)?.strip_suffix('>');
        if let Some(of) = inner("list<") {
            return Type::list(Type::read(of));
        }
        if let Some(of) = inner("optional<") {
            return Type::optional(Type::read(of));
        }
        if let Some((key, of)) = inner("map<").and_then(|i| i.split_once(',')) {
            return Type::Map(Arc::new(Type::read(key)), Arc::new(Type::read(of)));
        }
        let mut letters = text.chars();
        if let (Some(letter @ 'A'..='Z'), None) = (letters.next(), letters.next()) {
            return Type::Param(letter);
        }
        let library =
            || LIBRARY.iter().find(|(short, _)| *short == text).map(|(short, _)| Type::Library(short));
        Type::plain(text).or_else(library).unwrap_or(Type::Dyn)
    }

    /// A type without parts, by its CEL name.
    pub fn plain(name: &str) -> Option<Type> {
        PLAIN.iter().find(|(n, _)| *n == name).map(|(_, ty)| ty.clone())
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::List(of) => write!(f, "list({of})"),
            Type::Map(key, of) => write!(f, "map({key}, {of})"),
            Type::Optional(of) => write!(f, "optional_type({of})"),
            Type::Object(object) => f.write_str(&object.name),
            Type::Library(short) => {
                f.write_str(LIBRARY.iter().find(|(s, _)| s == short).map_or(short, |(_, name)| name))
            }
            Type::Param(letter) => write!(f, "{letter}"),
            Type::Null => f.write_str("null"),
            plain => f.write_str(PLAIN.iter().find(|(_, ty)| ty == plain).map_or("dyn", |(name, _)| name)),
        }
    }
}

/// The type parameters of one signature and what they stand for.
#[derive(Default)]
pub struct Bindings(BTreeMap<char, Type>);

impl Bindings {
    /// May a value of type `actual` stand where `wanted` is?
    pub fn accepts(&mut self, wanted: &Type, actual: &Type) -> bool {
        match (wanted, actual) {
            (Type::Param(letter), _) => {
                let Some(bound) = self.0.get(letter).cloned() else {
                    self.0.insert(*letter, actual.clone());
                    return true;
                };
                if !Bindings::default().accepts(&bound, actual)
                    && !Bindings::default().accepts(actual, &bound)
                {
                    return false;
                }
                self.0.insert(*letter, join(&bound, actual));
                true
            }
            (Type::Dyn, _) | (_, Type::Dyn) => true,
            (Type::Object(_) | Type::Timestamp | Type::Duration | Type::Optional(_), Type::Null) => true,
            (Type::Object(a), Type::Object(b)) => a.name == b.name,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => self.accepts(a, b),
            (Type::Map(k, v), Type::Map(l, w)) => self.accepts(k, l) && self.accepts(v, w),
            (a, b) => a == b,
        }
    }

    /// A signature's type with its parameters filled in.
    pub fn apply(&self, ty: &Type) -> Type {
        match ty {
            Type::Param(letter) => self.0.get(letter).cloned().unwrap_or(Type::Dyn),
            Type::List(of) => Type::list(self.apply(of)),
            Type::Optional(of) => Type::optional(self.apply(of)),
            Type::Map(key, of) => Type::Map(Arc::new(self.apply(key)), Arc::new(self.apply(of))),
            other => other.clone(),
        }
    }
}

/// The type of what may be either.
pub fn join(a: &Type, b: &Type) -> Type {
    match (a, b) {
        _ if a == b => a.clone(),
        (Type::Null, Type::Object(_)) => b.clone(),
        (Type::Object(_), Type::Null) => a.clone(),
        (Type::List(a), Type::List(b)) => Type::list(join(a, b)),
        (Type::Optional(a), Type::Optional(b)) => Type::optional(join(a, b)),
        (Type::Map(k, v), Type::Map(l, w)) => Type::Map(Arc::new(join(k, l)), Arc::new(join(v, w))),
        (Type::Object(x), Type::Object(y)) if x.name == y.name => a.clone(),
        _ => Type::Dyn,
    }
}

/// Words that cannot be identifiers.
pub const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// A property's name as expressions write it (`a-b` is `a__dash__b`); `None` when they cannot.
pub fn escape(name: &str) -> Option<String> {
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let mut out = name.replace("__", "__underscores__");
    for (sign, word) in [(".", "__dot__"), ("-", "__dash__"), ("/", "__slash__")] {
        out = out.replace(sign, word);
    }
    out.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_').then_some(out)
}

/// The reverse of [`escape`].
pub fn unescape(name: &str) -> String {
    if let Some(word) = name.strip_prefix("__").and_then(|n| n.strip_suffix("__"))
        && RESERVED.contains(&word)
    {
        return word.to_string();
    }
    let words = [("__dot__", "."), ("__dash__", "-"), ("__slash__", "/"), ("__underscores__", "__")];
    let (mut out, mut rest) = (String::new(), name);
    while !rest.is_empty() {
        match words.iter().find(|(word, _)| rest.starts_with(word)) {
            Some((word, sign)) => {
                out.push_str(sign);
                rest = &rest[word.len()..];
            }
            None => {
                let length = rest.chars().next().map_or(1, char::len_utf8);
                out.push_str(&rest[..length]);
                rest = &rest[length..];
            }
        }
    }
    out
}
