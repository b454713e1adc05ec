//! Volumes that are made from images, beside the volume of a [`World`]: complete, or left to be
//! finished by the next attempt.

use std::sync::Arc;

use bilayer::errno::Errno;
use bilayer::fs::FsError;
use bilayer::fs::snapshots::ViewKind;
use bilayer::image::{DeployOptions, NoProgress};
use bilayer::store::{Store, StorePath};

use super::comparison::read_model;
use super::kept::{Seen, failed, views_answer};
use super::operation::Title;
use super::world::{Outcome, World, same};
use super::{Mount, directory_of, try_open_volume};

/// Maximum number of volumes made in one scenario: each is examined again after every power cut.
const MOST: usize = 2;

/// A volume made from an image.
#[derive(Clone, Debug)]
pub struct DeployedCopy {
    /// Its directory in the store.
    pub at: StorePath,
    /// The image's name.
    pub image: &'static str,
    /// Its contents.
    pub seen: Arc<Seen>,
    /// Its creation was reported as successful.
    pub made: bool,
}

impl World {
    /// Makes a volume from an image.
    pub fn deploy(&mut self, title: Title) -> (Outcome, Outcome) {
        if self.deployed.len() == MOST {
            return same();
        }
        let image = title.text();
        let at = StorePath::new(&format!("copy{}", self.deployed.len()));
        let expected = self.find(ViewKind::Image, image);
        if expected.is_none() {
            let actual = self.deploy_into(&at, image);
            return (actual, failed(Errno::ENOENT));
        }
        let seen = expected.map(|at| Arc::clone(&self.kept[at].seen));
        self.deployed.extend(seen.map(|seen| DeployedCopy {
            at: at.clone(),
            image,
            seen,
            made: false,
        }));
        let actual = self.deploy_into(&at, image);
        if let Some(copy) = self.deployed.last_mut() {
            copy.made = actual == Outcome::Done;
        }
        (actual, Outcome::Done)
    }

    fn deploy_into(&self, at: &StorePath, image: &str) -> Outcome {
        let mount = self.mount();
        let made = mount.store.create_dir(at);
        let made = made.and_then(|()| mount.store.sync_dir(&StorePath::root()));
        match made {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Outcome::Failed(Errno::from_backing(&error));
            }
            _ => {}
        }
        let options = DeployOptions {
            keystore: mount.keystore.path().join("platform"),
            ..DeployOptions::default()
        };
        let directory = directory_of(&mount.store, at);
        let deployed = mount
            .fs
            .deploy_image(image, directory, &options, &NoProgress);
        views_answer(deployed.map(|_| ()))
    }

    /// Checks that every volume made from an image is whole; one whose creation was interrupted is
    /// made again. Returns how many were examined.
    pub fn compare_deployed(&mut self) -> u64 {
        for copy in &mut self.deployed.clone() {
            if !self.is_volume(copy) {
                assert!(!copy.made, "{:?} was reported made", copy.at);
                let again = self.deploy_into(&copy.at, copy.image);
                assert_eq!(again, Outcome::Done, "a second attempt at {:?}", copy.at);
            }
            self.compare_copy(copy);
        }
        self.deployed.iter_mut().for_each(|copy| copy.made = true);
        self.deployed.len() as u64
    }

    fn is_volume(&self, copy: &DeployedCopy) -> bool {
        use bilayer::volume::VolumeError;
        let mount = self.mount();
        let directory = directory_of(&mount.store, &copy.at);
        if directory.info(&StorePath::root()).is_err() {
            return false;
        }
        match try_open_volume(directory, mount.keystore.path(), false) {
            Ok(_) => true,
            Err(VolumeError::NotAVolume) => false,
            Err(error) => panic!("{:?}: {error}", copy.at),
        }
    }

    fn compare_copy(&self, copy: &DeployedCopy) {
        let mount = self.mount();
        let (store, keystore) = (mount.store.clone(), Arc::clone(&mount.keystore));
        let options = mount.options.clone();
        let opened: Result<Mount, FsError> =
            Mount::open_at(store, copy.at.clone(), keystore, options);
        let opened = opened.unwrap_or_else(|error| panic!("{:?}: {error}", copy.at));
        let (actual, expected) = (read_model(&opened), &copy.seen.model);
        assert_eq!(actual.namespace(), expected.namespace(), "{:?}", copy.at);
        for number in expected.files() {
            let same = actual.inode(number).data == expected.inode(number).data;
            assert!(same, "contents of {number} in {:?}", copy.at);
        }
        opened.finish();
    }
}
