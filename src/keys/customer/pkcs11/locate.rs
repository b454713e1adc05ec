//! Finds the file of a PKCS#11 module, and decides whether it may be loaded.
//!
//! Loading a module runs its code as this user. So a module is loaded only if nobody but root and
//! this user can change it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::uri::{KeyUri, ModuleRef};
use crate::sys::identity::effective_user;

/// The module that presents all modules that the machine has configured for p11-kit.
const P11_KIT_PROXY: &str = "p11-kit-proxy.so";

/// Where p11-kit's configuration of modules is, as in pkcs11.conf(5).
const P11_KIT_CONFIGURATION: [&str; 2] = ["/etc/pkcs11/modules", "/usr/share/p11-kit/modules"];

/// Limit on a file of that configuration, in bytes.
const MAX_CONFIGURATION_BYTES: u64 = 64 * 1024;

/// The path of the module that `uri` refers to, without symbolic links.
pub(super) fn locate(uri: &KeyUri, module: &ModuleRef) -> Result<PathBuf, KeyError> {
    let path = match module {
        ModuleRef::Path(path) => path.clone(),
        ModuleRef::Name(name) => named(name).ok_or_else(|| {
            KeyError::new(
                ErrorKind::KeyUnavailable,
                format!("{uri}: no PKCS#11 module of that name is installed"),
            )
            .with_hint("install it, or name its file: module-path=/path/to/module.so")
        })?,
        ModuleRef::Default => first_file(P11_KIT_PROXY).ok_or_else(|| {
            KeyError::new(
                ErrorKind::KeyUnavailable,
                format!("{uri}: the URI names no PKCS#11 module, and p11-kit is not installed"),
            )
            .with_hint(
                "install p11-kit (Debian: p11-kit-modules), or name the module: \
                 ...?module-path=/path/to/module.so",
            )
        })?,
    };
    let real = path.canonicalize().map_err(|error| {
        unavailable(uri, &path, &format!("is not usable: {error}")).with_hint(match error.kind() {
            io::ErrorKind::NotFound => "install the token's module, or correct module-path",
            _ => "see that this user may read it",
        })
    })?;
    check(uri, &real)?;
    Ok(real)
}

/// Refuses a file that others could change, or that is none.
fn check(uri: &KeyUri, path: &Path) -> Result<(), KeyError> {
    let metadata = path
        .metadata()
        .map_err(|error| unavailable(uri, path, &format!("is not usable: {error}")))?;
    if !metadata.is_file() {
        return Err(unavailable(uri, path, "is no file")
            .with_hint("name the module's file: module-path=/path/to/module.so"));
    }
    let (owner, user) = (metadata.uid(), effective_user());
    if owner != 0 && owner != user {
        return Err(unavailable(uri, path, &format!("belongs to user {owner}"))
            .with_hint("its code would run as this user: install it as root"));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(unavailable(
            uri,
            path,
            &format!("can be changed by others (mode {mode:04o})"),
        )
        .with_hint(format!("chmod go-w {}", path.display())));
    }
    Ok(())
}

/// A module by its name: by p11-kit's configuration, else by the usual names of files.
fn named(name: &str) -> Option<PathBuf> {
    let configured = P11_KIT_CONFIGURATION.iter().find_map(|directory| {
        let file = matching_file(Path::new(directory), &|file| {
            file.strip_suffix(".module") == Some(name)
        })?;
        configured_module(&file)
    });
    configured.or_else(|| {
        let directories = module_directories();
        directories.iter().find_map(|directory| {
            matching_file(directory, &|file| {
                let file = file.strip_suffix(".so").unwrap_or("");
                let file = file.strip_prefix("lib").unwrap_or(file);
                file == name || file.strip_suffix("-pkcs11") == Some(name)
            })
        })
    })
}

/// The module that a file of p11-kit's configuration names.
fn configured_module(file: &Path) -> Option<PathBuf> {
    if file.metadata().ok()?.len() > MAX_CONFIGURATION_BYTES {
        return None;
    }
    let text = fs::read_to_string(file).ok()?;
    let lines = text.lines();
    let module = lines
        .filter_map(|line| line.split_once(':'))
        .find_map(|(key, value)| (key.trim() == "module").then_some(value.trim()))?;
    match Path::new(module) {
        path if path.is_absolute() => Some(path.to_owned()),
        _ => first_file(module),
    }
}

/// The first file whose name in lower case is accepted, in order of names.
fn matching_file(directory: &Path, accept: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().to_str()?.to_ascii_lowercase();
            accept(&name).then(|| entry.path())
        })
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files.into_iter().next()
}

fn first_file(name: &str) -> Option<PathBuf> {
    module_directories()
        .into_iter()
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

/// Where distributions install modules.
fn module_directories() -> Vec<PathBuf> {
    let triplet = match std::env::consts::ARCH {
        "arm" => "arm-linux-gnueabihf".to_owned(),
        "x86" => "i386-linux-gnu".to_owned(),
        arch => format!("{arch}-linux-gnu"),
    };
    let roots = [
        format!("/usr/lib/{triplet}"),
        "/usr/lib64".to_owned(),
        "/usr/lib".to_owned(),
        "/usr/local/lib".to_owned(),
    ];
    let mut directories = Vec::new();
    for root in &roots {
        directories.push(Path::new(root).join("pkcs11"));
    }
    for root in &roots {
        directories.push(PathBuf::from(root));
        directories.push(Path::new(root).join("softhsm"));
    }
    directories
}

fn unavailable(uri: &KeyUri, path: &Path, why: &str) -> KeyError {
    KeyError::new(
        ErrorKind::KeyUnavailable,
        format!("{uri}: the PKCS#11 module {} {why}", path.display()),
    )
}
