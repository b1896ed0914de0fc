//! What `keys!` makes of the definition of the keys.

use toml::de::DeValue;

use crate::domain::Domain;

/// A table of the configuration as its definition describes it.
pub(crate) struct TableDefinition {
    pub(crate) name: &'static str,
    pub(crate) doc: &'static str,
    pub(crate) keys: Vec<KeyDefinition>,
}

/// A key of a table as its definition describes it.
pub(crate) struct KeyDefinition {
    pub(crate) name: &'static str,
    pub(crate) doc: &'static str,
    /// See [`Domain::accepts`].
    pub(crate) accepts: String,
    /// As TOML.
    pub(crate) default: String,
    /// A pod may set it, where it is allowed to.
    pub(crate) per_pod: Option<PerPod>,
}

/// What it takes to allow a key to pods; see [`crate::allow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PerPod {
    /// Its name.
    Any,
    /// Its name and a pattern: it names a file of the host.
    File,
}

/// A value as it is given.
pub(crate) enum Given<'a, 'de> {
    /// In a file.
    Toml(&'a DeValue<'de>),
    /// In an annotation.
    Text(&'a str),
}

/// Why a value was not assigned to a key.
pub(crate) enum Refusal {
    UnknownTable,
    UnknownKey,
    /// The key accepts something else.
    Value {
        expected: String,
    },
}

/// Reads `value` into `place`, or says what `domain` accepts.
pub(crate) fn assign<T>(
    place: &mut T,
    domain: &impl Domain<T>,
    value: &Given<'_, '_>,
) -> Result<(), Refusal> {
    let read = match value {
        Given::Toml(value) => domain.read(value),
        Given::Text(text) => domain.read_text(text),
    };
    *place = read.ok_or_else(|| Refusal::Value {
        expected: domain.accepts(),
    })?;
    Ok(())
}

/// Defines the tables and keys of the configuration. A key is written as
/// `name: type = default, domain;` under its documentation, one that pods may
/// be allowed to set as `name: type = default, domain, Any;`: see [`PerPod`].
macro_rules! keys {
    ($(
        $(#[doc = $table_doc:literal])+
        [$table:ident] $struct:ident {
            $(
                $(#[doc = $doc:literal])+
                $key:ident: $type:ty = $default:expr, $domain:expr $(, $per_pod:ident)?;
            )+
        }
    )+) => {
        /// Every setting, by table.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Config {
            $($(#[doc = $table_doc])+ pub $table: $struct,)+
        }

        $(
            $(#[doc = $table_doc])+
            #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
            #[serde(deny_unknown_fields)]
            pub struct $struct {
                $($(#[doc = $doc])+ pub $key: $type,)+
            }

            impl Default for $struct {
                fn default() -> Self {
                    Self { $($key: $default,)+ }
                }
            }
        )+

        impl Config {
            /// Sets one key.
            pub(crate) fn assign(
                &mut self,
                table: &str,
                key: &str,
                value: &Given<'_, '_>,
            ) -> Result<(), Refusal> {
                match table {
                    $(stringify!($table) => match key {
                        $(stringify!($key) => {
                            definition::assign(&mut self.$table.$key, &$domain, value)
                        })+
                        _ => Err(Refusal::UnknownKey),
                    },)+
                    _ => Err(Refusal::UnknownTable),
                }
            }
        }

        /// The keys that pods may be allowed to set, with their tables in front.
        pub(crate) const PER_POD: &[(&str, PerPod)] = &[
            $($($((
                concat!(stringify!($table), ".", stringify!($key)),
                PerPod::$per_pod,
            ),)?)+)+
        ];

        /// The definition as data, in its own order.
        pub(crate) fn definitions() -> Vec<TableDefinition> {
            let defaults = Config::default();
            vec![$(TableDefinition {
                name: stringify!($table),
                doc: concat!($($table_doc, "\n"),+),
                keys: vec![$(KeyDefinition {
                    name: stringify!($key),
                    doc: concat!($($doc, "\n"),+),
                    accepts: Domain::<$type>::accepts(&$domain),
                    default: $domain.write(&defaults.$table.$key),
                    per_pod: crate::allow::per_pod(concat!(
                        stringify!($table), ".", stringify!($key)
                    )),
                },)+],
            },)+]
        }
    };
}

pub(crate) use keys;
