//! Queueing disciplines, as far as it matters which kind there is.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use crate::Error;
use crate::connection::Netlink;

/// The queues behind an interface's root, where a device has several hardware queues.
const SEVERAL: [&str; 2] = ["mq", "mqprio"];

impl Netlink {
    /// The kinds of the queues that an interface sends through: of its root, or where that only stands for several queues,
    /// of each of them. Empty: it sends at once.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses to tell.
    pub async fn queues(&self, link: u32) -> Result<Vec<String>, Error> {
        let list = self.dump(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default())).await;
        let list =
            list.map_err(|refusal| refusal.on("list queueing disciplines", format!("interface {link}")))?;
        let messages = list.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewQueueDiscipline(message) => Some(message),
            _ => None,
        });
        let of_link = messages.filter(|message| u32::try_from(message.header.index) == Ok(link));
        let found: Vec<(TcHandle, String)> =
            of_link.filter_map(|message| Some((message.header.parent, kind(message)?))).collect();
        Ok(sending(&found))
    }
}

fn kind(message: &TcMessage) -> Option<String> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.clone()),
        _ => None,
    })
}

/// Of all queues of an interface, by parent, those that packets wait in.
fn sending(found: &[(TcHandle, String)]) -> Vec<String> {
    let root = found.iter().find(|(parent, _)| *parent == TcHandle::ROOT).map(|(_, kind)| kind.as_str());
    let below = |(parent, _): &&(TcHandle, String)| *parent != TcHandle::ROOT && parent.major != u16::MAX;
    match root {
        None | Some("noqueue") => Vec::new(),
        Some(root) if SEVERAL.contains(&root) => {
            found.iter().filter(below).map(|(_, kind)| kind.clone()).collect()
        }
        Some(root) => vec![root.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_queues_count_for_their_root() {
        let at = |major, minor, kind: &str| (TcHandle { major, minor }, kind.to_owned());
        let root = |kind: &str| (TcHandle::ROOT, kind.to_owned());
        assert_eq!(sending(&[]), Vec::<String>::new());
        assert_eq!(sending(&[root("noqueue")]), Vec::<String>::new());
        assert_eq!(sending(&[root("fq"), (TcHandle::INGRESS, "clsact".into())]), ["fq"]);
        let several = [
            root("mq"),
            at(0x8001, 1, "fq"),
            at(0x8001, 2, "pfifo_fast"),
            (TcHandle::INGRESS, "ingress".into()),
        ];
        assert_eq!(sending(&several), ["fq", "pfifo_fast"]);
    }
}
