//! The layers of a configuration and their merging.
//!
//! Defaults, file, environment and flags each become a [`Layer`] of known keys, checked for unknown ones on the way; the
//! `config` crate merges them and this module remembers where each winning value came from.

use std::collections::BTreeMap;
use std::fmt;

use config::{Source, Value, ValueKind};

use super::problem::Origin;

/// The values of one layer, by dotted key, each with its origin.
#[derive(Clone, Default)]
pub(crate) struct Layer {
    entries: BTreeMap<String, (ValueKind, Origin)>,
}

impl Layer {
    /// Adds a value; a later one of the same key replaces it.
    pub(crate) fn insert(&mut self, key: impl Into<String>, value: ValueKind, origin: Origin) {
        self.entries.insert(key.into(), (value, origin));
    }

    /// The same values as built-in defaults.
    pub(crate) fn into_defaults(mut self) -> Self {
        for (_, origin) in self.entries.values_mut() {
            *origin = Origin::Default;
        }
        self
    }

    /// Where this layer sets a key or something below it.
    fn origin(&self, key: &str) -> Option<&Origin> {
        let below = format!("{key}.");
        self.entries
            .iter()
            .find(|(path, _)| *path == key || path.starts_with(&below))
            .map(|(_, (_, origin))| origin)
    }
}

/// Lists keys only: values may be secret.
impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.entries.keys()).finish()
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<config::Map<String, Value>, config::ConfigError> {
        let values = self.entries.iter();
        Ok(values
            .map(|(key, (kind, _))| (key.clone(), Value::new(None, kind.clone())))
            .collect())
    }
}

/// All layers merged; the highest that sets a key wins.
pub(crate) struct Layers {
    merged: Value,
    /// From the defaults upwards.
    layers: Vec<Layer>,
}

impl Layers {
    /// Merges layers given from the lowest to the highest; the lowest are the defaults.
    pub(crate) fn merge(layers: Vec<Layer>) -> Result<Self, config::ConfigError> {
        let builder = layers
            .iter()
            .fold(config::Config::builder(), |builder, layer| {
                builder.add_source(layer.clone())
            });
        Ok(Self {
            merged: builder.build()?.cache,
            layers,
        })
    }

    /// The winning value of a key.
    pub(crate) fn value(&self, key: &str) -> Option<&ValueKind> {
        key.split('.')
            .try_fold(&self.merged.kind, |kind, part| match kind {
                ValueKind::Table(table) => table.get(part).map(|value| &value.kind),
                _ => None,
            })
    }

    /// Where the winning value of a key came from.
    pub(crate) fn origin(&self, key: &str) -> Option<&Origin> {
        self.layers.iter().rev().find_map(|layer| layer.origin(key))
    }

    /// The number of the highest layer that sets a key, the defaults being 0.
    pub(crate) fn rank(&self, key: &str) -> Option<usize> {
        self.layers
            .iter()
            .rposition(|layer| layer.origin(key).is_some())
    }

    /// Whether the operator set a key or something below it.
    pub(crate) fn is_set(&self, key: &str) -> bool {
        self.rank(key).is_some_and(|rank| rank > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(key: &str, value: &str, name: &str) -> Layer {
        let mut layer = Layer::default();
        let origin = Origin::Environment {
            name: name.to_owned(),
            value: None,
        };
        layer.insert(key, ValueKind::String(value.to_owned()), origin);
        layer
    }

    #[test]
    fn highest_layer_wins_and_its_origin_is_known() {
        let layers = vec![
            layer("a.b", "low", "LOW"),
            layer("a.c", "kept", "LOW"),
            layer("a.b", "high", "HIGH"),
        ];
        let merged = Layers::merge(layers).expect("plain keys merge");
        assert_eq!(
            merged.value("a.b"),
            Some(&ValueKind::String("high".to_owned()))
        );
        assert_eq!(
            merged.value("a.c"),
            Some(&ValueKind::String("kept".to_owned()))
        );
        assert_eq!(merged.value("a.d"), None);
        assert_eq!(merged.rank("a.b"), Some(2));
        assert_eq!(
            merged.origin("a.b").map(ToString::to_string).as_deref(),
            Some("HIGH")
        );
        assert!(merged.is_set("a"));
        assert!(!merged.is_set("a.d"));
    }

    #[test]
    fn debug_of_a_layer_shows_keys_only() {
        assert_eq!(
            format!("{:?}", layer("source.url", "hunter2", "X")),
            r#"{"source.url"}"#
        );
    }
}
