//! The one function that serves requests about snapshots and images, for the daemon of a mounted
//! volume as for a command that opened the volume itself.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use super::create::Place;
use super::error::CliError;
use super::request::{DeployReport, ExportReport, Outcome, PathBytes, Receiver, Request};
use crate::fs::Filesystem;
use crate::image::{DeployOptions, ExportOptions, Transport};
use crate::keys::{KeyUri, PassphraseSource};

/// Raw bytes of a stream that are handed on at a time.
pub(super) const CHUNK_BYTES: usize = 256 << 10;

/// Does what is asked.
///
/// # Errors
/// What a command ends with.
pub(super) fn serve(
    filesystem: &Arc<Filesystem>,
    request: &Request,
    to: &mut dyn Receiver,
) -> Result<Outcome, CliError> {
    let failed = |error| CliError::view(request.doing(), &error);
    match request {
        Request::List { kind } => {
            for view in filesystem.views((*kind).into()).map_err(failed)? {
                to.view(view.into())
                    .map_err(|error| lost(request, &error))?;
            }
        }
        Request::Create {
            kind,
            name,
            from,
            description,
        } => {
            let made = filesystem.create_view((*kind).into(), name, from.as_deref(), description);
            return Ok(Outcome::Created(made.map_err(failed)?.into()));
        }
        Request::Delete { kind, name } => {
            filesystem
                .delete_view((*kind).into(), name)
                .map_err(failed)?;
        }
        Request::Rename { kind, name, to } => {
            filesystem
                .rename_view((*kind).into(), name, to)
                .map_err(failed)?;
        }
        Request::Diff { from, to: until } => {
            // Told afterwards: who reads slowly keeps nobody from taking a snapshot meanwhile.
            let mut changes = Vec::new();
            filesystem
                .diff_views(from, until.as_deref(), &mut |change| changes.push(change))
                .map_err(failed)?;
            for change in changes {
                to.change(change.into())
                    .map_err(|error| lost(request, &error))?;
            }
        }
        Request::Restore { snapshot, path } => {
            let path = path.as_ref().map(PathBytes::path);
            filesystem
                .restore(snapshot, path.as_deref())
                .map_err(failed)?;
        }
        Request::Deploy { .. } => return deploy(filesystem, request),
        Request::Export { .. } => return export(filesystem, request, to),
    }
    Ok(Outcome::Nothing)
}

fn lost(request: &Request, error: &io::Error) -> CliError {
    CliError::io(request.doing(), error)
}

fn deploy(filesystem: &Arc<Filesystem>, request: &Request) -> Result<Outcome, CliError> {
    let Request::Deploy {
        image,
        target,
        customer_key,
        passphrase,
        size_bytes,
        keystore,
    } = request
    else {
        return Ok(Outcome::Nothing);
    };
    let customer_key = customer_key.as_deref().map(KeyUri::parse).transpose();
    let options = DeployOptions {
        customer_key: customer_key.map_err(|error| CliError::key(request.doing(), &error))?,
        passphrase: passphrase.source(),
        size_bytes: *size_bytes,
        keystore: match keystore {
            Some(named) => named.path(),
            None => filesystem.volume().keystore.directory().to_path_buf(),
        },
    };
    let place = Place::take(&target.path(), request.doing())?;
    let made = filesystem
        .deploy_image(image, place.store(), &options)
        .map_err(|error| CliError::view(request.doing(), &error))?;
    place.keep();
    Ok(Outcome::Deployed(DeployReport {
        volume: made.volume.to_string(),
        inodes: made.inodes,
        objects: made.objects,
        linked: made.linked,
        reflinked: made.reflinked,
        copied: made.copied,
        bytes: made.bytes,
    }))
}

fn export(
    filesystem: &Arc<Filesystem>,
    request: &Request,
    to: &mut dyn Receiver,
) -> Result<Outcome, CliError> {
    let Request::Export {
        image,
        passphrase_file,
    } = request
    else {
        return Ok(Outcome::Nothing);
    };
    let options = ExportOptions {
        transport: match passphrase_file {
            Some(path) => Transport::Passphrase(PassphraseSource::File(path.path())),
            None => Transport::Keystore,
        },
    };
    let mut stream = BufWriter::with_capacity(CHUNK_BYTES, Stream(to));
    let made = filesystem
        .export_image(image, &options, &mut stream)
        .map_err(|error| CliError::view(request.doing(), &error))?;
    stream.flush().map_err(|error| lost(request, &error))?;
    Ok(Outcome::Exported(ExportReport {
        export: made.export.to_string(),
        objects: made.objects,
        bytes: made.bytes,
    }))
}

/// A receiver as something to write to.
struct Stream<'a>(&'a mut dyn Receiver);

impl Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let some = &bytes[..bytes.len().min(CHUNK_BYTES)];
        self.0.bytes(some)?;
        Ok(some.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
