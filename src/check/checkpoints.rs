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
        let (checkpoints, refused) = match listed {
            Ok(listed) => listed,
            // Something else may have the directory's name. The rest of the volume is checked.
            Err(error) => {
                let message = format!("the checkpoints cannot be listed: {error}");
                let finding = Finding::new(Kind::Checkpoint, message);
                self.report(finding, PathHint::None, 0..0);
                return Ok(());
            }
        };
        for (checkpoint, tables) in checkpoints {
            self.report.bytes = self.report.bytes.saturating_add(checkpoint.bytes);
            if let Some(reason) = self.first_gap(&tables)? {
                self.report_checkpoint(checkpoint.name, &reason);
            }
        }
        for (name, error) in refused {
            // If the volume is in use, a new checkpoint may have replaced this one.
            let is_replaced = matches!(
                &error,
                MetaError::Io(error) if error.kind() == std::io::ErrorKind::NotFound
            );
            if !is_replaced {
                self.report_checkpoint(name, &error.to_string());
            }
        }
        Ok(())
    }

    /// Why a row cannot be read, for the first such row.
    fn first_gap(&self, tables: &RawTables) -> Result<Option<String>, CheckError> {
        let mut reason = None;
        let mut cancelled = Ok(());
        for table in Table::ALL {
            let mut rows = 0u32;
            tables.visit(table, &(Vec::new()..vec![0xFF; 9]), &mut |visited| {
                if let Visited::Gap(gap) = visited {
                    reason.get_or_insert_with(|| gap.reason.clone());
                }
                rows = rows.wrapping_add(1);
                if rows.is_multiple_of(1024) {
                    cancelled = self.check_cancelled();
                }
                cancelled.is_ok() && reason.is_none()
            });
        }
        cancelled.map(|()| reason)
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
