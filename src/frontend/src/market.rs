//! A registry as a marketplace: which images it offers.
//!
//! Every listing must be whole, for oned forgets what is missing: a registry that does not answer fails it. An image that
//! is gone, or for other machines, is left out and told.

use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_datastore::{
    Cancel, Error as StoreError, Limits, Patience, Registries, RegistriesConfig, RegistryFault,
    RegistryReference,
};
use ocivisor_opennebula::market::{App, MAX_APPS, Market};

use crate::config::Config;
use crate::fault::{clip, from_store};

/// Seconds that one question may take. A listing has many.
const PATIENCE: u64 = 20;

/// Asks the registry for all of the marketplace's images. `log` hears what is left out.
///
/// # Errors
/// The registry does not answer, or offers nothing.
pub fn list(market: &Market, config: &Config, log: &mut dyn FnMut(&str)) -> Result<Vec<App>> {
    let hasty =
        RegistriesConfig { attempts: 2, deadline_seconds: PATIENCE, ..config.registries.clone() };
    let half = Duration::from_secs(PATIENCE / 2);
    let patience = Patience { connect: half, answer: half, ..Patience::default() };
    let registries = Registries::new(hasty).with_patience(patience);
    let names = if market.apps.is_empty() {
        let host = market.registry.parse().map_err(|e| from_store(&e))?;
        registries.catalog(&host, MAX_APPS, &Cancel::new()).map_err(|e| {
            from_store(&e).hint("many registries do not tell what they have: name images in APPS")
        })?
    } else {
        market.apps.clone()
    };
    let mut apps: Vec<App> = Vec::new();
    for name in names {
        let source = format!("docker://{}/{name}", market.registry);
        let reference: RegistryReference = match source.parse() {
            Ok(reference) => reference,
            Err(error) => {
                log(&format!("leaves {:?} out: {error}", clip(&name)));
                continue;
            }
        };
        match registries.inspect(&reference, &Limits::default(), &Cancel::new()) {
            Ok(found) => {
                let size = found.size.div_ceil(1 << 20).max(config.images.disk_mb);
                apps.push(App {
                    name,
                    source,
                    digest: found.manifest_digest.to_string(),
                    size_mb: size,
                    architecture: found.config.architecture,
                });
            }
            Err(
                error @ (StoreError::Platform { .. }
                | StoreError::Document { .. }
                | StoreError::Registry { why: RegistryFault::NotFound, .. }),
            ) => log(&format!("leaves {:?} out: {error}", clip(&name))),
            Err(error) => return Err(from_store(&error)),
        }
    }
    if apps.is_empty() {
        let text = format!("{} offers no image for this machine", market.registry);
        return Err(Error::new(ErrorKind::NotFound, text));
    }
    Ok(apps)
}
