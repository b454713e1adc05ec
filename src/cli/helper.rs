//! The helpers that mount(8) and umount(8) call: `mount.bilayer`, `mount.fuse.bilayer`,
//! `umount.bilayer`, `umount.fuse.bilayer`.
//!
//! ```text
//! mount.TYPE  spec dir [-sfnv] [-N namespace] [-o options] [-t type]
//! umount.TYPE dir [-flnrv] [-N namespace] [-t type]
//! ```
//!
//! Exit codes are mount(8)'s: 0 done, 1 usage, 2 system, 32 failed.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;
use std::process;

use super::args::{keystore_dir, start_audit};
use super::commands::mount::MOUNT_HELP;
use super::commands::unmount::{UnmountRequest, report_remaining_mounts, unmount};
use super::output::{print, print_error};
use super::prepare_process;
use crate::control::paths::working_directory;
use crate::daemon::log::{Log, Verbosity};
use crate::daemon::mount::mount;
use crate::daemon::mount_request::MountRequest;
use crate::daemon::options::RequestedOptions;
use crate::diagnostics::UserError;
use crate::sys::interrupt;
use crate::sys::mounts::enter_mount_namespace;

/// A helper.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Helper {
    /// `mount.bilayer`.
    Mount,
    /// `umount.bilayer`.
    Unmount,
}

/// The parsed arguments.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Arguments {
    operands: Vec<OsString>,
    options: Vec<String>,
    namespace: Option<PathBuf>,
    flags: Vec<char>,
}

impl Arguments {
    /// Options may stand before, between or after the operands; `-o` may be repeated; flags may be
    /// joined (`-fv`) and values attached (`-oro`).
    fn parse(
        helper: Helper,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Self, UserError> {
        let known = match helper {
            Helper::Mount => "sfnv",
            Helper::Unmount => "flnrv",
        };
        let mut parsed = Self::default();
        let mut arguments = arguments.into_iter();
        let mut only_operands = false;
        while let Some(argument) = arguments.next() {
            let text = argument.to_str().unwrap_or_default();
            match text
                .strip_prefix('-')
                .filter(|flags| !flags.is_empty() && !only_operands)
            {
                None => parsed.operands.push(argument),
                Some("-") => only_operands = true,
                Some(flags) => parsed.take_flags(flags, known, &mut arguments)?,
            }
        }
        let operands = match helper {
            Helper::Mount => 2,
            Helper::Unmount => 1,
        };
        if parsed.operands.len() == operands {
            Ok(parsed)
        } else {
            Err(usage(helper))
        }
    }

    /// Takes one argument of flags, and the next argument if it is the value of the last flag.
    fn take_flags(
        &mut self,
        flags: &str,
        known: &str,
        rest: &mut impl Iterator<Item = OsString>,
    ) -> Result<(), UserError> {
        for (at, flag) in flags.char_indices() {
            if known.contains(flag) {
                self.flags.push(flag);
                continue;
            }
            if !matches!(flag, 'o' | 'N' | 't') {
                let unknown = UserError::usage(format!("unknown option -{flag}"));
                return Err(unknown.with_hint(format!("the options are -{known}, -N, -o and -t")));
            }
            let attached = &flags[at + flag.len_utf8()..];
            let value = match attached {
                "" => rest.next(),
                attached => Some(OsString::from(attached)),
            };
            let missing = || {
                let error = UserError::usage(format!("option -{flag} needs a value"));
                error.with_hint("see mount.bilayer --help")
            };
            return self.take_value(flag, &value.ok_or_else(missing)?);
        }
        Ok(())
    }

    fn take_value(&mut self, flag: char, value: &OsStr) -> Result<(), UserError> {
        match flag {
            'o' => {
                let text = value
                    .to_str()
                    .ok_or_else(|| UserError::usage("mount options must be valid UTF-8"))?;
                self.options.push(text.to_owned());
            }
            'N' => self.namespace = Some(PathBuf::from(value)),
            // The type: mount(8) has chosen this helper by it.
            _ => {}
        }
        Ok(())
    }

    /// Prints what was done if `-v` asks for it: mount(8) leaves that to its helpers.
    fn report_done(&self, done: fmt::Arguments<'_>) -> Result<(), UserError> {
        if self.has('v') {
            print(&format!("bilayer: {done}.\n"))?;
        }
        Ok(())
    }

    fn has(&self, flag: char) -> bool {
        self.flags.contains(&flag)
    }
}

impl Helper {
    const fn synopsis(self) -> &'static str {
        match self {
            Self::Mount => "mount.bilayer VOLUME DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS]",
            Self::Unmount => "umount.bilayer DIR [-flnrv] [-N NAMESPACE]",
        }
    }

    /// The answer to `--help` or `--version`; `None` if neither is among the arguments.
    fn answer(self, arguments: &[OsString]) -> Option<String> {
        let asked = |words: &[&str]| {
            let options = arguments.iter().take_while(|argument| *argument != "--");
            let mut options = options.filter_map(|argument| argument.to_str());
            options.any(|argument| words.contains(&argument))
        };
        if asked(&["--version", "-V"]) {
            return Some(format!("bilayer {}\n", env!("CARGO_PKG_VERSION")));
        }
        if !asked(&["--help", "-h"]) {
            return None;
        }
        let synopsis = self.synopsis();
        Some(match self {
            Self::Mount => format!(
                "Mounts a bilayer volume; called by mount(8).\n\nUsage: {synopsis}\n\n  \
                 -s  ignore unknown options\n  \
                 -f  only check the arguments\n  \
                 -n  accepted; /etc/mtab is never written\n  \
                 -v  say what was done\n  \
                 -N  mount in another mount namespace\n\n{MOUNT_HELP}\n"
            ),
            Self::Unmount => format!(
                "Unmounts a bilayer volume; called by umount(8).\n\nUsage: {synopsis}\n\n  \
                 -f  also if the daemon does not answer any more\n  \
                 -l  detach at once, even if it is in use, and do not wait\n  \
                 -n  accepted; /etc/mtab is never written\n  \
                 -r  if it is in use, remount it read-only instead\n  \
                 -v  say what was done\n  \
                 -N  unmount in another mount namespace\n\n\
                 Example:\n  umount.bilayer /mnt\n"
            ),
        })
    }
}

fn usage(helper: Helper) -> UserError {
    UserError::usage(format!("usage: {}", helper.synopsis()))
}

/// The main function of a helper.
pub fn run(helper: Helper) -> process::ExitCode {
    let log = Log::start(Verbosity::Warnings);
    let result = run_with(helper, std::env::args_os().skip(1), &log);
    if let Err(error) = &result {
        print_error(&error.clone().unless_asked_to_end());
    }
    interrupt::exit_by_signal();
    result.map_or_else(
        |error| process::ExitCode::from(error.code.for_mount()),
        |()| process::ExitCode::SUCCESS,
    )
}

fn run_with(
    helper: Helper,
    arguments: impl IntoIterator<Item = OsString>,
    log: &Log,
) -> Result<(), UserError> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if let Some(text) = helper.answer(&arguments) {
        return print(&text);
    }
    let arguments = Arguments::parse(helper, arguments)?;
    if let Some(namespace) = &arguments.namespace {
        enter_mount_namespace(namespace).map_err(|error| {
            UserError::io(format_args!("cannot enter {}", namespace.display()), &error)
        })?;
    }
    let operand = |number: usize| {
        arguments
            .operands
            .get(number)
            .map(PathBuf::from)
            .unwrap_or_default()
    };
    if helper == Helper::Unmount {
        let request = UnmountRequest {
            lazy: arguments.has('l'),
            force: arguments.has('f'),
            or_read_only: arguments.has('r'),
        };
        let remaining = unmount(&operand(0), request)?;
        report_remaining_mounts(&operand(0), &remaining);
        return arguments.report_done(format_args!("{} unmounted", operand(0).display()));
    }
    let options = mount_options(&arguments)?;
    if arguments.has('f') {
        return Ok(());
    }
    prepare_process()?;
    let keystore = keystore_dir(options.platform_keystore.as_deref())?;
    start_audit(options.audit_log.clone(), &keystore);
    let request = MountRequest {
        volume: operand(0),
        dir: operand(1),
        create: false,
        // Not available in fstab: a restored copy must be accepted once and deliberately.
        accept_restored: false,
        new_identity: false,
        foreground: false,
        options,
        keystore,
    };
    let (volume, dir) = (request.volume.clone(), request.dir.clone());
    mount(request, log)?;
    arguments.report_done(format_args!(
        "{} mounted on {}",
        volume.display(),
        dir.display()
    ))
}

/// Parses the mount options. Unknown options are an error unless `-s` asks to ignore them.
fn mount_options(arguments: &Arguments) -> Result<RequestedOptions, UserError> {
    let (options, directory) = (&arguments.options, working_directory()?);
    let options = options.iter().map(String::as_str);
    if !arguments.has('s') {
        return Ok(RequestedOptions::parse(options, &directory)?.with_defaults_of_mount());
    }
    let (options, unknown) = RequestedOptions::parse_sloppy(options, &directory)?;
    if !unknown.is_empty() {
        tracing::debug!(count = unknown.len(), "unknown mount options ignored");
    }
    Ok(options.with_defaults_of_mount())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(helper: Helper, text: &str) -> Result<Arguments, UserError> {
        Arguments::parse(helper, text.split_whitespace().map(OsString::from))
    }

    #[test]
    fn arguments_of_mount_are_parsed() {
        let plain = |options: &[&str], flags: &str| Arguments {
            operands: vec!["/v".into(), "/d".into()],
            options: options.iter().map(|&word| word.to_owned()).collect(),
            namespace: None,
            flags: flags.chars().collect(),
        };
        for (text, expected) in [
            ("/v /d", plain(&[], "")),
            ("/v /d -o rw", plain(&["rw"], "")),
            (
                "/v /d -o rw,nofail -t fuse.bilayer",
                plain(&["rw,nofail"], ""),
            ),
            ("-o ro /v /d -v", plain(&["ro"], "v")),
            ("/v -sfn /d -oro -o noexec", plain(&["ro", "noexec"], "sfn")),
            ("/v /d -vo ro", plain(&["ro"], "v")),
            ("-- /v /d", plain(&[], "")),
        ] {
            assert_eq!(parse(Helper::Mount, text).unwrap(), expected, "{text}");
        }
        let namespace = parse(Helper::Mount, "/v /d -N /proc/1/ns/mnt")
            .unwrap()
            .namespace;
        assert_eq!(namespace, Some("/proc/1/ns/mnt".into()));
        let dashed = parse(Helper::Mount, "-o ro -- -v -d").unwrap();
        assert_eq!(dashed.operands, ["-v", "-d"]);
    }

    #[test]
    fn arguments_of_umount_are_parsed() {
        let parsed = parse(Helper::Unmount, "/d -l -v").unwrap();
        assert!(parsed.has('l') && !parsed.has('f'));
        assert_eq!(parsed.operands, ["/d"]);
        assert!(parse(Helper::Unmount, "-flnrv /d -t fuse.bilayer").is_ok());
    }

    #[test]
    fn wrong_arguments_are_usage_errors() {
        for text in [
            "", "/v", "/v /d /e", "/v /d -o", "/v /d -x", "/v /d -l", "/v /d -N",
        ] {
            let error = parse(Helper::Mount, text).unwrap_err();
            assert_eq!(error.code.for_mount(), 1, "{text}");
        }
        for text in ["", "/d /e", "/d -s"] {
            assert_eq!(
                parse(Helper::Unmount, text).unwrap_err().code.for_mount(),
                1,
                "{text}"
            );
        }
    }

    #[test]
    fn help_is_printed_without_mounting() {
        let answer = |helper: Helper, text: &str| {
            let options: Vec<OsString> = text.split_whitespace().map(OsString::from).collect();
            helper.answer(&options)
        };
        for text in ["--help", "-h", "/v /d --help", "-o ro -h"] {
            let help = answer(Helper::Mount, text).unwrap();
            assert!(help.contains("mount.bilayer VOLUME DIR"), "{text}: {help}");
            assert!(help.contains("customer_key=URI"), "{text}: {help}");
            let help = answer(Helper::Unmount, text).unwrap();
            assert!(help.contains("umount.bilayer DIR"), "{text}: {help}");
        }
        assert!(answer(Helper::Mount, "-V").unwrap().starts_with("bilayer "));
        for text in ["", "/v /d -o ro", "-- -h --help", "-fv /v /d"] {
            assert_eq!(answer(Helper::Mount, text), None, "{text}");
        }
    }

    #[test]
    fn a_fake_mount_only_checks_its_options() {
        let log = Log::discarding();
        let run = |text: &str| {
            run_with(
                Helper::Mount,
                text.split_whitespace().map(OsString::from),
                &log,
            )
        };
        run("/no/such/volume /no/such/dir -f -o rw,nofail").unwrap();
        assert!(
            run("/no/such/volume /no/such/dir -f -o blah")
                .unwrap_err()
                .message
                .contains("blah")
        );
    }
}
