//! Many callers, one piece of work.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use super::Tasks;

/// Runs at most one piece of work per key; whoever asks meanwhile waits for the same outcome.
///
/// The work is a task of its own: it goes on when its first caller leaves, and no caller can
/// cancel it for the others. Nothing is kept once it has ended.
pub struct Coalesce<K, V> {
    name: &'static str,
    tasks: Tasks,
    // A mutex: held for one map operation, never across an await.
    running: Arc<Mutex<HashMap<K, Running<V>>>>,
}

type Running<V> = Shared<BoxFuture<'static, Option<V>>>;

impl<K, V> fmt::Debug for Coalesce<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coalesce").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<K, V> Coalesce<K, V>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Work that runs as tasks called `name`.
    pub fn new(name: &'static str, tasks: &Tasks) -> Self {
        Self { name, tasks: tasks.clone(), running: Arc::default() }
    }

    /// The outcome of the work under way for `key`, or of `work` where there is none. The flag says
    /// whether this call joined. `None` when the work panicked.
    ///
    /// Cancel safe: the work goes on.
    pub fn run<F, W>(&self, key: K, work: W) -> (impl Future<Output = Option<V>> + use<K, V, F, W>, bool)
    where
        W: FnOnce() -> F,
        F: Future<Output = V> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = running.get(&key) {
            return (shared.clone(), true);
        }
        let done = Done { key: key.clone(), running: Arc::clone(&self.running) };
        let work = work();
        let handle = self.tasks.spawn(self.name, async move {
            // Dropped when the work ends, also by a panic: the key is free again.
            let _done = done;
            work.await
        });
        let shared = async move { handle.await.ok() }.boxed().shared();
        running.insert(key, shared.clone());
        (shared, false)
    }
}

struct Done<K: Eq + Hash, V> {
    key: K,
    running: Arc<Mutex<HashMap<K, Running<V>>>>,
}

impl<K: Eq + Hash, V> Drop for Done<K, V> {
    fn drop(&mut self) {
        let removed = self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        // Dropped outside the lock: it may hold the last reference to the outcome.
        drop(removed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn many_callers_share_one_run_and_the_next_one_starts_anew() {
        let coalesce = Coalesce::new("test", &Tasks::new());
        let runs = Arc::new(AtomicUsize::new(0));
        let work = || {
            let runs = Arc::clone(&runs);
            async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                runs.fetch_add(1, Ordering::Relaxed) + 1
            }
        };
        let (first, joined) = coalesce.run("key", work);
        assert!(!joined);
        let (second, joined) = coalesce.run("key", work);
        assert!(joined);
        assert_eq!(tokio::join!(first, second), (Some(1), Some(1)));
        assert_eq!(coalesce.run("key", work).0.await, Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn the_work_goes_on_when_its_first_caller_leaves() {
        let coalesce = Coalesce::new("test", &Tasks::new());
        let work = || async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            7
        };
        let (first, _) = coalesce.run("key", work);
        drop(first);
        let (second, joined) = coalesce.run("key", work);
        assert!(joined);
        assert_eq!(second.await, Some(7));
    }

    #[tokio::test]
    async fn a_panic_frees_the_key() {
        let coalesce = Coalesce::<_, u8>::new("test", &Tasks::new());
        let (outcome, _) = coalesce.run("key", || async { panic!("on purpose") });
        assert_eq!(outcome.await, None);
        assert_eq!(coalesce.run("key", || async { 1 }).0.await, Some(1));
    }
}
