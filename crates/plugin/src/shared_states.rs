//! What plugins remember beyond one configuration.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// What plugins remember, kept while somebody holds it: a changed configuration builds all plugins anew, and a new
/// one finds here what the plugin of the same name before it had; see
/// [`BuildContext::shared`](crate::BuildContext::shared). The host has one for each pool.
///
/// Nothing is kept alive by it: what the plugins of the last configuration hold and those of the next don't ask for
/// is gone with the last of them.
#[derive(Clone, Default)]
pub struct SharedStates(Arc<Mutex<HashMap<StateKey, Weak<dyn Any + Send + Sync>>>>);

/// Name of the plugin, type of the state, the plugin's own key.
type StateKey = (String, TypeId, String);

impl SharedStates {
    pub(crate) fn get<T: Any + Send + Sync>(
        &self,
        plugin: &str,
        key: &str,
        make: impl FnOnce() -> T,
    ) -> Arc<T> {
        let key = (plugin.to_owned(), TypeId::of::<T>(), key.to_owned());
        let found = self.lock().get(&key).and_then(Weak::upgrade);
        if let Some(Ok(found)) = found.map(Arc::downcast) {
            return found;
        }
        // Made outside of the lock: it is the plugin's code.
        let made = Arc::new(make());
        let weak: Weak<T> = Arc::downgrade(&made);
        let mut states = self.lock();
        states.retain(|_, state| state.strong_count() > 0);
        states.insert(key, weak);
        made
    }

    /// How many states are in use.
    pub fn len(&self) -> usize {
        self.lock().values().filter(|state| state.strong_count() > 0).count()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<StateKey, Weak<dyn Any + Send + Sync>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SharedStates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedStates").field(&self.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_found_by_plugin_type_and_key_as_long_as_it_is_held() {
        let states = SharedStates::default();
        let first = states.get("a", "x", || 1u32);
        assert_eq!(*states.clone().get("a", "x", || 2u32), 1);
        assert_eq!(*states.get("a", "y", || 3u32), 3);
        assert_eq!(*states.get("b", "x", || 4u32), 4);
        assert_eq!(*states.get("a", "x", || 5u64), 5);
        assert_eq!(states.len(), 1, "only the first one is held");
        drop(first);
        assert!(states.is_empty());
        assert_eq!(*states.get("a", "x", || 6u32), 6);
    }
}
