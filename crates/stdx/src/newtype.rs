//! The newtype macros: one for numbers, one for strings. Every id, unit and revision uses one of them.

/// Declares a copyable number newtype: `newtype_num!(/// doc pub struct Revision(u64));`.
#[macro_export]
macro_rules! newtype_num {
    ($(#[$m:meta])* $v:vis struct $name:ident($t:ty)) => {
        $(#[$m])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        $v struct $name(pub $t);
        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result { self.0.fmt(f) }
        }
        impl ::std::fmt::Debug for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

/// Declares a cheaply clonable string newtype (`Arc<str>` inside).
#[macro_export]
macro_rules! newtype_str {
    ($(#[$m:meta])* $v:vis struct $name:ident) => {
        $(#[$m])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $v struct $name(::std::sync::Arc<str>);
        impl $name {
            /// Wraps the text as it is.
            pub fn new(text: impl Into<::std::sync::Arc<str>>) -> Self { Self(text.into()) }
            /// The text.
            pub fn as_str(&self) -> &str { &self.0 }
        }
        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result { f.write_str(&self.0) }
        }
        impl ::std::fmt::Debug for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                write!(f, "{}({:?})", stringify!($name), &*self.0)
            }
        }
    };
}
