//! Stalled calls: a test brings a thread to a certain call and holds it there.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::super::StorePath;
use super::CallKind;

type Rule = Box<dyn Fn(CallKind, &StorePath) -> bool + Send + Sync>;

#[derive(Debug, Default)]
struct GateState {
    /// A call has arrived.
    is_reached: bool,
    /// The call may continue.
    is_released: bool,
}

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

impl Gate {
    fn release(&self) {
        self.state.lock().is_released = true;
        self.changed.notify_all();
    }
}

/// One stalled call, from its beginning until this is released or dropped. No lock of the store is
/// held meanwhile, so other threads continue.
#[derive(Debug)]
pub struct Stall(Arc<Gate>);

impl Stall {
    /// Waits until a call has arrived. False if none arrives within this time.
    pub fn is_reached_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.0.state.lock();
        while !state.is_reached {
            if self.0.changed.wait_until(&mut state, deadline).timed_out() {
                return state.is_reached;
            }
        }
        true
    }

    /// Lets the call continue.
    pub fn release(self) {
        drop(self);
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// Stalls that no call has reached yet.
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

    /// Waits if a stall matches this call; each stall applies to a single call.
    pub(super) fn pass(&self, kind: CallKind, path: &StorePath) {
        let gate = {
            let mut stalls = self.0.lock();
            let matching = stalls.iter().position(|(rule, _)| rule(kind, path));
            matching.map(|index| stalls.remove(index).1)
        };
        let Some(gate) = gate else {
            return;
        };
        let mut state = gate.state.lock();
        state.is_reached = true;
        gate.changed.notify_all();
        while !state.is_released {
            gate.changed.wait(&mut state);
        }
    }
}
