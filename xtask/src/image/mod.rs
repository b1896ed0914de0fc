//! Container images of the tests and the quickstart, made from Debian packages: no registry of
//! images is asked, and what is in them is known.

mod applications;
pub(crate) mod busybox;
pub(crate) mod debian;
mod oci;

use std::path::Path;

use anyhow::Result;

use crate::{cache, workspace};

/// Options of `cargo xtask image`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Images to build; all of them if none is named
    #[arg(value_enum)]
    images: Vec<Name>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Name {
    /// Busybox alone: 2 MB, starts at once
    Busybox,
    /// Busybox that sleeps: what the first container of a pod runs
    Pause,
    /// A minimal Debian with tools that look at capabilities, attributes, networks
    Debian,
    /// nginx, Redis and PostgreSQL, with clients that load them
    Applications,
}

/// How the file system of an image is made.
struct Recipe {
    name: &'static str,
    /// Everything the content depends on.
    ingredients: String,
    /// Writes the layer into the folder and says which file it is.
    layer: fn(&Path) -> Result<std::path::PathBuf>,
    command: &'static [&'static str],
}

/// Builds the images and puts them into `build/images`.
pub(crate) fn run(options: &Options) -> Result<()> {
    for name in [Name::Busybox, Name::Pause, Name::Debian, Name::Applications] {
        if !options.images.is_empty() && !options.images.contains(&name) {
            continue;
        }
        let recipe = match name {
            Name::Busybox => busybox::recipe()?,
            Name::Pause => busybox::pause()?,
            Name::Debian => debian::recipe()?,
            Name::Applications => applications::recipe()?,
        };
        build(&recipe)?;
    }
    Ok(())
}

fn build(recipe: &Recipe) -> Result<()> {
    let mut ingredients = cache::Ingredients::default();
    ingredients.add("name", recipe.name);
    ingredients.add("content", &recipe.ingredients);
    ingredients.add("command", recipe.command.join(" "));
    ingredients.add("archive", oci::FORMAT);
    let digest = ingredients.digest();
    let entry = cache::obtain("images", &format!("{}-{digest}", recipe.name), |folder| {
        let work = folder.join("work");
        std::fs::create_dir(&work)?;
        println!("image {}: building", recipe.name);
        let layer = (recipe.layer)(&work)?;
        let image = oci::Image {
            reference: &format!("localhost/casemate/{}:latest", recipe.name),
            layer: &layer,
            command: recipe.command,
        };
        image.write(&work.join("layout"), &folder.join("image.tar"))?;
        Ok(std::fs::remove_dir_all(&work)?)
    })?;
    let place = workspace::build("images").join(format!("{}.tar", recipe.name));
    cache::install(&entry.join("image.tar"), &place)?;
    println!("{}", place.display());
    Ok(())
}
