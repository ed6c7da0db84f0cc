//! From a container's `image` and `imagePullPolicy` to an image on disk. The seam for pulling: what is missing
//! today is [`ensure`]'s last arm.

use crate::decide::outcome::{StartFailure, StartStep};
use image::{Images, Lease, Reference};

/// An image that is there, and how the API names it.
pub struct Found {
    /// Keeps it on disk.
    pub lease: Lease,
    /// `status.image`.
    pub name: String,
    /// `status.imageID`.
    pub id: String,
}

fn failure(reason: &'static str, message: String) -> StartFailure {
    StartFailure { step: StartStep::Image, reason, message }
}

/// Finds the image; policies as upstream: `Never` must find it, the others use it when it is present.
pub async fn ensure(images: &Images, image: &str, policy: Option<&str>) -> Result<Found, StartFailure> {
    if let Some(lease) = images.lease(image) {
        let found = lease.image();
        let wanted = Reference::parse(image).map(|r| r.to_string()).ok();
        let name = wanted.filter(|w| found.names.contains(w)).or_else(|| found.names.first().cloned());
        let id = found.digests.first().cloned().unwrap_or_else(|| found.id.clone());
        let name = name.unwrap_or_else(|| found.id.clone());
        return Ok(Found { name, id, lease });
    }
    let reference = match Reference::parse(image) {
        Ok(reference) => reference,
        Err(error) => {
            let text = format!("Failed to apply default image tag \"{image}\": {error}");
            return Err(failure("InvalidImageName", text));
        }
    };
    if policy == Some("Never") {
        let text = format!("Container image \"{image}\" is not present with pull policy of Never");
        return Err(failure("ErrImageNeverPull", text));
    }
    let text = format!(
        "failed to pull and unpack image \"{reference}\": not in this node's image store and pulling from \
         registries is not supported yet; load it with `gantry image load`"
    );
    Err(failure("ErrImagePull", text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_images_by_policy() {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(dir.path()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let of = |image: &str, policy| {
            let failure = runtime.block_on(ensure(&images, image, policy)).err().unwrap();
            (failure.reason, failure.message)
        };
        assert_eq!(of("nginx", Some("IfNotPresent")).0, "ErrImagePull");
        assert!(of("nginx", None).1.contains("\"docker.io/library/nginx:latest\""));
        assert_eq!(of("x", Some("Never")).0, "ErrImageNeverPull");
        let (reason, message) = of("UPPER:case", None);
        assert_eq!(reason, "InvalidImageName");
        assert!(message.contains("couldn't parse image name"), "{message}");
    }
}
