//! Finds the shortest history that still fails: rounds, then steps, are removed as long as the
//! failure stays.

use std::time::{Duration, Instant};

use crate::panics::{Failure, caught};
use crate::plan::{Cut, Plan};
use crate::scenario::{RunOutcome, run_scenario};
use crate::stats::Stats;

/// Maximum time of the search.
const EFFORT: Duration = Duration::from_secs(40);

/// Result of a plan.
pub struct Outcome {
    pub run: RunOutcome,
    pub failure: Option<Failure>,
}

/// Runs a plan.
pub fn attempt(plan: &Plan, trace: bool) -> Outcome {
    let mut run = RunOutcome {
        stats: Stats::default(),
        trace: Vec::new(),
        met: Vec::new(),
    };
    let failure = caught(|| run_scenario(plan, &mut run, trace)).err();
    Outcome { run, failure }
}

/// A failing plan made shorter, and how it fails.
pub fn shrink(plan: &Plan, first: &Outcome) -> (Plan, Outcome) {
    let until = Instant::now() + EFFORT;
    let mut best = without_what_follows(plan, first);
    let mut failure = first.failure.clone();
    let fails = |plan: &Plan, failure: &mut Option<Failure>| {
        let outcome = attempt(plan, false);
        let place = |failure: &Option<Failure>| failure.as_ref().map(|f| f.place.clone());
        let same = outcome.failure.is_some() && place(&outcome.failure) == place(failure);
        if same {
            *failure = outcome.failure;
        }
        same
    };
    if !fails(&best, &mut failure) {
        best = plan.clone();
    }
    let mut size = best.rounds.iter().map(|round| round.steps.len()).max();
    while let Some(piece) = size.filter(|piece| *piece > 0 && Instant::now() < until) {
        let mut shorter = false;
        for candidate in candidates(&best, piece) {
            if Instant::now() > until {
                break;
            }
            if fails(&candidate, &mut failure) {
                best = candidate;
                shorter = true;
                break;
            }
        }
        if !shorter {
            size = Some(piece / 2);
        }
    }
    let outcome = attempt(&best, true);
    (best, outcome)
}

/// Removes rounds after the failure. The power cuts of the remaining ones are expressed by step, so
/// that they stay in their places.
fn without_what_follows(plan: &Plan, outcome: &Outcome) -> Plan {
    let mut plan = plan.clone();
    plan.rounds.truncate(outcome.run.met.len());
    for (round, met) in plan.rounds.iter_mut().zip(&outcome.run.met) {
        if let Some((step, call)) = *met {
            round.cut = Cut::Within { step, call };
            round.steps.retain(|other| other.number <= step);
        }
    }
    plan
}

/// The plan without one round, without one of the later power cuts, or without some steps.
fn candidates(plan: &Plan, piece: usize) -> Vec<Plan> {
    let mut candidates = Vec::new();
    for at in 0..plan.rounds.len() {
        let mut shorter = plan.clone();
        if plan.rounds.len() > 1 {
            shorter.rounds.remove(at);
            candidates.push(shorter.clone());
            shorter = plan.clone();
        }
        let round = &mut shorter.rounds[at];
        if !round.recovery.is_empty() || !round.reopening.is_empty() {
            round.recovery.pop();
            round.reopening.pop();
            candidates.push(shorter.clone());
        }
        let steps = plan.rounds[at].steps.len();
        let kept = match plan.rounds[at].cut {
            Cut::Within { step, .. } => Some(step),
            Cut::Call(_) => None,
        };
        for start in (0..steps).step_by(piece) {
            let mut shorter = plan.clone();
            let gone = start..(start + piece).min(steps);
            let mut index = 0;
            shorter.rounds[at].steps.retain(|step| {
                index += 1;
                !gone.contains(&(index - 1)) || Some(step.number) == kept
            });
            if shorter.rounds[at].steps.len() < steps {
                candidates.push(shorter);
            }
        }
    }
    candidates
}

/// A readable description of a failure.
pub fn report(plan: &Plan, (shorter, outcome): &(Plan, Outcome)) -> String {
    let none = Failure::default();
    let failure = outcome.failure.as_ref().unwrap_or(&none);
    let steps: usize = shorter.rounds.iter().map(|round| round.steps.len()).sum();
    format!(
        "seed {} fails: {}\n  {}\n\
         the shortest history found has {steps} operations ({:?} writes):\n  {}\n",
        plan.seed,
        failure.place,
        failure.message,
        plan.unit,
        outcome.run.trace.join("\n  "),
    )
}
