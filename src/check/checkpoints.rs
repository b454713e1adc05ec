//! Checks whether the checkpoints of the metadata could be used.

use super::report::{Finding, Kind};
use super::{CheckError, PathHint, Run};
use crate::ids::CryptoId;
use crate::meta::MetaError;
use crate::meta::checkpoint;
use crate::meta::keys::Table;
use crate::meta::raw::{RawTables, Visited};

impl Run<'_> {
    /// Reads all rows of all checkpoints.
    pub(super) fn check_checkpoints(&mut self) -> Result<(), CheckError> {
        let objects = &self.subject.objects;
        let listed = checkpoint::list(&**objects.store(), objects.keys().active());
        let (found, refused) = match listed {
            Ok(listed) => listed,
            // Whatever is there instead of a directory: the rest of the volume is checked anyway.
            Err(error) => {
                let message = format!("the checkpoints cannot be listed: {error}");
                let finding = Finding::new(Kind::Checkpoint, message);
                self.report(finding, PathHint::None, 0..0);
                return Ok(());
            }
        };
        for (checkpoint, tables) in found {
            self.report.bytes = self.report.bytes.saturating_add(checkpoint.bytes);
            if let Some(reason) = self.first_gap(&tables)? {
                self.report_checkpoint(checkpoint.name, &reason);
            }
        }
        for (name, error) in refused {
            // A new checkpoint replaces an older one.
            let gone = matches!(
                &error,
                MetaError::Io(error) if error.kind() == std::io::ErrorKind::NotFound
            );
            if !gone {
                self.report_checkpoint(name, &error.to_string());
            }
        }
        Ok(())
    }

    fn first_gap(&self, tables: &RawTables) -> Result<Option<String>, CheckError> {
        let mut reason = None;
        let mut ended = Ok(());
        for table in Table::ALL {
            let mut rows = 0u32;
            tables.visit(table, &(Vec::new()..vec![0xFF; 9]), &mut |found| {
                if let Visited::Gap(gap) = found {
                    reason.get_or_insert_with(|| gap.reason.clone());
                }
                rows = rows.wrapping_add(1);
                if rows.is_multiple_of(1024) {
                    ended = self.check_cancelled();
                }
                ended.is_ok() && reason.is_none()
            });
        }
        ended.map(|()| reason)
    }

    fn report_checkpoint(&mut self, name: CryptoId, reason: &str) {
        let path = checkpoint::checkpoint_path(name);
        let message = format!("{} cannot be used: {reason}", path.as_str());
        self.report(
            Finding::new(Kind::Checkpoint, message),
            PathHint::None,
            0..0,
        );
    }
}
