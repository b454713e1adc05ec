//! Calls that wait: a test brings a thread to a certain call and keeps it there.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::super::StorePath;
use super::CallKind;

type Rule = Box<dyn Fn(CallKind, &StorePath) -> bool + Send + Sync>;

#[derive(Debug, Default)]
struct Gate {
    /// A call has arrived, and whether it may go on.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Gate {
    fn release(&self) {
        self.state.lock().1 = true;
        self.changed.notify_all();
    }
}

/// One call that waits, from its begin until this is released or dropped. No lock of the store is
/// held meanwhile, so other threads go on.
#[derive(Debug)]
pub struct Stall(Arc<Gate>);

impl Stall {
    /// Waits until a call has arrived. False when none does within the time.
    pub fn is_reached_within(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut state = self.0.state.lock();
        while !state.0 {
            if self.0.changed.wait_until(&mut state, until).timed_out() {
                return state.0;
            }
        }
        true
    }

    /// Lets the call go on.
    pub fn release(self) {
        drop(self);
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// The stalls that have met no call yet.
#[derive(Default)]
pub(super) struct Stalls(Mutex<Vec<(Rule, Arc<Gate>)>>);

impl fmt::Debug for Stalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stalls").field(&self.0.lock().len()).finish()
    }
}

impl Stalls {
    pub(super) fn add(
        &self,
        rule: impl Fn(CallKind, &StorePath) -> bool + Send + Sync + 'static,
    ) -> Stall {
        let gate = Arc::new(Gate::default());
        self.0.lock().push((Box::new(rule), Arc::clone(&gate)));
        Stall(gate)
    }

    /// Waits where a stall is for this call; each one is for a single call.
    pub(super) fn pass(&self, kind: CallKind, path: &StorePath) {
        let gate = {
            let mut stalls = self.0.lock();
            let met = stalls.iter().position(|(rule, _)| rule(kind, path));
            met.map(|met| stalls.remove(met).1)
        };
        let Some(gate) = gate else {
            return;
        };
        let mut state = gate.state.lock();
        state.0 = true;
        gate.changed.notify_all();
        while !state.1 {
            gate.changed.wait(&mut state);
        }
    }
}
