//! Marks that a loop leaves when it gets on, for whoever wants to know whether it still does.

use std::fmt;
use std::sync::Arc;

/// Where a loop leaves its marks; by default nowhere.
#[derive(Clone, Default)]
pub struct Mark(Option<Arc<dyn Fn() + Send + Sync>>);

impl Mark {
    /// A mark that `told` hears of. It is called from within the loop and must neither wait nor fail.
    #[must_use]
    pub fn new(told: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(told)))
    }

    /// Leaves the mark: something was done since the last one, or there was nothing to do.
    pub fn leave(&self) {
        if let Some(told) = &self.0 {
            told();
        }
    }
}

impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mark").field(&self.0.is_some()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_shows_whether_anybody_hears_of_it() {
        assert_eq!(format!("{:?}", Mark::default()), "Mark(false)");
        assert_eq!(format!("{:?}", Mark::new(|| {})), "Mark(true)");
    }
}
