//! Listing and deleting views, for both `bilayer snapshot` and `bilayer image`.

use std::path::PathBuf;

use clap::Args;

use super::args::OpenArgs;
use super::output::format;
use super::output::{print, print_json};
use super::session::{Access, Session};
use crate::control::report::ViewReport;
use crate::control::request::{Kind, Operation};
use crate::control::response::Discard;
use crate::diagnostics::UserError;

#[derive(Args, Debug)]
pub(super) struct ListArgs {
    /// Directory of the volume, or where it is mounted
    pub(crate) volume: PathBuf,
    /// A JSON array, sizes in bytes and times in UTC
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
}

#[derive(Args, Debug)]
pub(super) struct DeleteArgs {
    /// Directory of the volume, or where it is mounted
    pub(crate) volume: PathBuf,
    /// Their names
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
}

/// Lists views of either kind.
///
/// # Errors
/// The volume cannot be opened, or its views cannot be read.
pub(crate) fn list(kind: Kind, args: &ListArgs) -> Result<(), UserError> {
    let mut session = Session::open(&args.volume, Access::Read, &args.open.keys()?)?;
    let views = session.list(kind)?;
    session.close()?;
    if args.json {
        return print_json(&views);
    }
    print(&listing(kind, &views))
}

fn listing(kind: Kind, views: &[ViewReport]) -> String {
    if views.is_empty() {
        return String::new();
    }
    let heading = ["NAME", "CREATED", "USED", "REFERS", "FROM", "DESCRIPTION"];
    let columns = match kind {
        Kind::Snapshot => 4,
        Kind::Image => heading.len(),
    };
    let mut rows = vec![
        heading[..columns]
            .iter()
            .map(|&text| text.to_owned())
            .collect(),
    ];
    let size = |bytes: Option<u64>| bytes.map_or_else(unknown, format::size);
    for view in views {
        let from = view.from.as_deref().map(format::printable);
        let row = [
            format::printable(&view.name),
            view.created.map_or_else(unknown, format::local_time),
            size(view.used_bytes),
            size(view.refers_bytes),
            from.unwrap_or_else(unknown),
            format::printable(&view.description),
        ];
        rows.push(row[..columns].to_vec());
    }
    format::table(&rows, &[2, 3])
}

fn unknown() -> String {
    "-".to_owned()
}

/// Deletes views of either kind, and stops at the first failure.
///
/// # Errors
/// The volume cannot be opened, or a view cannot be deleted.
pub(crate) fn delete(kind: Kind, args: &DeleteArgs) -> Result<(), UserError> {
    let mut session = Session::open(&args.volume, Access::Write, &args.open.keys()?)?;
    let deleted = args.names.iter().try_for_each(|name| {
        let name = name.clone();
        let operation = Operation::Delete { kind, name };
        session.ask(&operation, &mut Discard).map(drop)
    });
    let closed = session.close();
    deleted.and(closed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_tables() {
        let view = ViewReport {
            kind: Kind::Image,
            name: "base".to_owned(),
            created: None,
            generation: None,
            used_bytes: Some(2048),
            refers_bytes: None,
            inodes: None,
            from: Some("monday".to_owned()),
            description: "a\nb".to_owned(),
        };
        assert_eq!(
            listing(Kind::Image, std::slice::from_ref(&view)),
            "NAME  CREATED     USED  REFERS  FROM    DESCRIPTION\n\
             base  -        2.0 KiB       -  monday  a b\n"
        );
        assert!(!listing(Kind::Snapshot, &[view]).contains("FROM"));
        assert_eq!(listing(Kind::Image, &[]), "");
    }
}
