//! A loaded PKCS#11 module and the thread that makes all calls to it.
//!
//! The thread of a module lives as long as the process. It loads and initialises the module when a
//! provider needs it, and finalises it when the last provider is dropped. The library itself stays
//! mapped, because modules leave handlers behind that would point into unmapped code.
//!
//! A caller waits for a limited time. After that the call is abandoned, and until it returns, the
//! module counts as stuck: others fail at once instead of waiting in turn.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicIsize, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::session::Session;
use parking_lot::Mutex;

use super::failure::Failure;
use crate::keys::error::{ErrorKind, KeyError};
use crate::sys::process::EndSignals;
use crate::sys::token_info::TokenInfoReader;

/// How long a call may take. Smart cards need seconds for an RSA operation, and modules of network
/// HSMs turn to another device after some.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(20);

/// How long the end of a provider waits for the module.
const END_LIMIT: Duration = Duration::from_secs(2);

/// The modules that this process has used.
static MODULES: Mutex<Vec<Arc<Module>>> = Mutex::new(Vec::new());

/// States of a call.
const WAITED_FOR: u8 = 0;
const ABANDONED: u8 = 1;
const DONE: u8 = 2;

type Job = Box<dyn FnOnce(&mut Tokens) + Send>;

/// A module, as its callers see it.
pub(super) struct Module {
    path: PathBuf,
    /// The process that has its thread: a forked child has not.
    process: u32,
    jobs: mpsc::Sender<Job>,
    /// Calls that nobody waits for and that have not returned.
    abandoned: Arc<AtomicIsize>,
}

impl Module {
    /// The module at this path, which may be stuck.
    pub(super) fn get(path: &Path) -> Result<Arc<Self>, KeyError> {
        let process = std::process::id();
        let mut modules = MODULES.lock();
        let is_it = |module: &&Arc<Self>| module.path == path && module.process == process;
        if let Some(module) = modules.iter().find(is_it) {
            return Ok(module.clone());
        }
        let module = Arc::new(Self::start(path)?);
        modules.push(module.clone());
        Ok(module)
    }

    fn start(path: &Path) -> Result<Self, KeyError> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let mut tokens = Tokens {
            path: path.to_owned(),
            library: None,
            running: None,
            sessions: HashMap::new(),
            users: 0,
        };
        let thread = thread::Builder::new().name("pkcs11".to_owned());
        let started = thread.spawn(move || {
            if let Err(error) = EndSignals::block() {
                tracing::debug!(%error, "the thread of a module may receive signals");
            }
            for job in queue {
                // A panic in a call must not end the thread: the sessions are in it.
                if catch_unwind(AssertUnwindSafe(|| job(&mut tokens))).is_err() {
                    tracing::error!(module = %tokens.path.display(), "a call to a token panicked");
                }
            }
        });
        started.map_err(|error| KeyError::io("cannot start a thread for", path, error))?;
        Ok(Self {
            path: path.to_owned(),
            process: std::process::id(),
            jobs,
            abandoned: Arc::new(AtomicIsize::new(0)),
        })
    }

    /// The module's file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `job` in the module's thread and waits for its result, but no longer than `limit`.
    pub(super) fn call<T: Send + 'static>(
        &self,
        limit: Duration,
        job: impl FnOnce(&mut Tokens) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        if self.abandoned.load(Ordering::SeqCst) > 0 {
            return Err(self.stuck("still does not answer"));
        }
        let state = Arc::new(AtomicU8::new(WAITED_FOR));
        let (sender, answer) = mpsc::sync_channel(1);
        let (shared, abandoned) = (state.clone(), self.abandoned.clone());
        let job: Job = Box::new(move |tokens| {
            let _end = CallEnd {
                state: shared.clone(),
                abandoned,
            };
            if shared.load(Ordering::SeqCst) == WAITED_FOR {
                // Nobody receives it if the call was abandoned meanwhile.
                let _ = sender.send(job(tokens));
            }
        });
        let gone = || self.stuck("has ended");
        self.jobs.send(job).map_err(|_| gone())?;
        match answer.recv_timeout(limit) {
            Ok(result) => result,
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(gone()),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let swapped = state.compare_exchange(
                    WAITED_FOR,
                    ABANDONED,
                    Ordering::SeqCst,
                    Ordering::SeqCst,
                );
                match swapped {
                    Ok(_) => {
                        self.abandoned.fetch_add(1, Ordering::SeqCst);
                        Err(self.stuck(&format!("did not answer for {} s", limit.as_secs())))
                    }
                    // It finished at the last moment.
                    Err(_) => answer.recv().unwrap_or_else(|_| Err(gone())),
                }
            }
        }
    }

    fn stuck(&self, what: &str) -> Failure {
        Failure::Refused(
            KeyError::new(
                ErrorKind::KeyUnreachable,
                format!("the PKCS#11 module {} {what}", self.path.display()),
            )
            .with_hint(
                "see that the token, and the service behind its module, work: pkcs11-tool -L; \
                 this process tries again once the call has returned",
            ),
        )
    }
}

/// Notes the end of a call, also during a panic.
struct CallEnd {
    state: Arc<AtomicU8>,
    abandoned: Arc<AtomicIsize>,
}

impl Drop for CallEnd {
    fn drop(&mut self) {
        if self.state.swap(DONE, Ordering::SeqCst) == ABANDONED {
            self.abandoned.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// A provider's part of a module. The module is finalised when the last one is dropped.
pub(super) struct ModuleUser {
    module: Arc<Module>,
    id: UserId,
}

/// Identifies a provider in its module's thread.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct UserId(u64);

impl ModuleUser {
    /// Loads and initialises the module at `path`, if it is not.
    pub(super) fn new(path: &Path) -> Result<Self, Failure> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let module = Module::get(path)?;
        // Counted first: the drop of `this` undoes it when the module cannot be loaded.
        module.call(CALL_LIMIT, |tokens| {
            tokens.users += 1;
            Ok(())
        })?;
        let this = Self {
            module,
            id: UserId(NEXT.fetch_add(1, Ordering::Relaxed)),
        };
        this.call(|tokens, _| tokens.library().map(|_| ()))?;
        Ok(this)
    }

    /// Runs `job` in the module's thread, for at most [`CALL_LIMIT`].
    pub(super) fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Tokens, UserId) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        self.call_within(CALL_LIMIT, job)
    }

    /// Runs `job` in the module's thread.
    pub(super) fn call_within<T: Send + 'static>(
        &self,
        limit: Duration,
        job: impl FnOnce(&mut Tokens, UserId) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let id = self.id;
        self.module.call(limit, move |tokens| job(tokens, id))
    }

    /// The module's file.
    pub(super) fn path(&self) -> &Path {
        self.module.path()
    }
}

impl Drop for ModuleUser {
    fn drop(&mut self) {
        let id = self.id;
        let (sender, ended) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |tokens| {
            tokens.sessions.remove(&id);
            tokens.users = tokens.users.saturating_sub(1);
            if tokens.users == 0 {
                tokens.finalize();
            }
            // Nobody receives it if the module is slow.
            let _ = sender.send(());
        });
        if self.module.jobs.send(job).is_ok() && self.module.abandoned.load(Ordering::SeqCst) <= 0 {
            let _ = ended.recv_timeout(END_LIMIT);
        }
    }
}

/// The state of a module, which only its thread sees.
pub(super) struct Tokens {
    path: PathBuf,
    /// Loaded once, never unloaded.
    library: Option<(Pkcs11, TokenInfoReader)>,
    /// Set while the module is initialised.
    running: Option<Running>,
    sessions: HashMap<UserId, Session>,
    users: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Running {
    /// Initialised here, and finalised here.
    Ours,
    /// Initialised by another part of the process, such as another module that uses this one.
    Shared,
}

impl Tokens {
    /// The module, initialised.
    pub(super) fn library(&mut self) -> Result<(&Pkcs11, &TokenInfoReader), Failure> {
        if self.library.is_none() {
            let library = Pkcs11::new(&self.path)?;
            let reader = TokenInfoReader::load(&self.path).map_err(|reason| {
                KeyError::new(
                    ErrorKind::KeyUnavailable,
                    format!("cannot load {}: {reason}", self.path.display()),
                )
            })?;
            self.library = Some((library, reader));
        }
        let Some((library, reader)) = &self.library else {
            return Err(Error::NullFunctionPointer.into());
        };
        if self.running.is_none() {
            self.running = Some(initialize(library)?);
        }
        Ok((library, reader))
    }

    /// The session of a provider, with its module.
    pub(super) fn session_and_library(
        &self,
        user: UserId,
    ) -> Result<(&Session, &Pkcs11, &TokenInfoReader), Failure> {
        let session = self.session(user)?;
        match &self.library {
            Some((library, reader)) => Ok((session, library, reader)),
            None => Err(Error::NullFunctionPointer.into()),
        }
    }

    /// The session of a provider.
    pub(super) fn session(&self, user: UserId) -> Result<&Session, Failure> {
        let lost = || {
            Failure::TokenGone(KeyError::new(
                ErrorKind::KeyUnreachable,
                "the session with the token has ended",
            ))
        };
        self.sessions.get(&user).ok_or_else(lost)
    }

    /// Keeps a provider's session, in the place of the one before.
    pub(super) fn keep_session(&mut self, user: UserId, session: Session) {
        self.sessions.insert(user, session);
    }

    /// Ends a provider's session. Without any session, the module begins anew at its next use: some
    /// look for tokens only then.
    pub(super) fn end_session(&mut self, user: UserId) {
        self.sessions.remove(&user);
        if self.sessions.is_empty() {
            self.finalize();
        }
    }

    fn finalize(&mut self) {
        self.sessions.clear();
        if self.running.take() != Some(Running::Ours) {
            return;
        }
        if let Some((library, _)) = &self.library
            && let Err(error) = library.clone().finalize()
        {
            tracing::debug!(%error, module = %self.path.display(), "C_Finalize failed");
        }
    }
}

fn initialize(library: &Pkcs11) -> Result<Running, Failure> {
    let with = |flags| library.initialize(CInitializeArgs::new(flags));
    let result = match with(CInitializeFlags::OS_LOCKING_OK) {
        // All calls come from one thread, so a module that cannot lock is as good.
        Err(Error::Pkcs11(RvError::CantLock | RvError::NeedToCreateThreads, _)) => {
            with(CInitializeFlags::empty())
        }
        result => result,
    };
    match result {
        Ok(()) => Ok(Running::Ours),
        Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(Running::Shared),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn module(name: &str) -> Arc<Module> {
        Module::get(Path::new(name)).expect("a thread")
    }

    fn kind(failure: Failure) -> ErrorKind {
        failure.into_error(&"a key").kind()
    }

    #[test]
    fn a_module_that_hangs_is_given_up_until_it_returns() {
        let module = module("/hangs.so");
        let (release, released) = mpsc::channel::<()>();
        let limit = Duration::from_millis(50);
        let hung = module.call(limit, move |_| {
            let _ = released.recv();
            Ok(())
        });
        assert_eq!(kind(hung.expect_err("hung")), ErrorKind::KeyUnreachable);
        let start = Instant::now();
        let next = module.call(CALL_LIMIT, |_| Ok(()));
        assert_eq!(kind(next.expect_err("stuck")), ErrorKind::KeyUnreachable);
        assert!(start.elapsed() < CALL_LIMIT / 2, "it did not wait");
        release.send(()).expect("still waiting");
        let deadline = Instant::now() + CALL_LIMIT;
        while module.call(CALL_LIMIT, |_| Ok(())).is_err() {
            assert!(Instant::now() < deadline, "it never came back");
            thread::yield_now();
        }
    }

    #[test]
    fn a_panic_in_a_call_ends_that_call_alone() {
        let module = module("/panics.so");
        let panicked: Result<(), _> = module.call(CALL_LIMIT, |_| panic!("on purpose"));
        assert_eq!(
            kind(panicked.expect_err("no answer")),
            ErrorKind::KeyUnreachable
        );
        assert!(module.call(CALL_LIMIT, |_| Ok(())).is_ok());
    }

    #[test]
    fn a_file_that_is_no_module_is_refused_by_name() {
        for (path, part) in [
            ("/nonexistent/module.so", "/nonexistent/module.so"),
            ("/proc/self/exe", "no PKCS#11 module"),
        ] {
            let Err(failure) = ModuleUser::new(Path::new(path)) else {
                panic!("{path} is no module");
            };
            let error = failure.into_error(&"a key");
            assert_eq!(error.kind(), ErrorKind::KeyUnavailable, "{error}");
            let text = error.to_string();
            assert!(
                text.contains(part) || text.contains("cannot be loaded"),
                "{text}"
            );
        }
    }
}
