"""The commands that people write, counted over public configurations: what opens, what closes, what stays."""

from __future__ import annotations

import pytest

from nfknock.knockd import convert
from nfknock.knockd.commands import recognise, understand
from tests.knockd.files import config, door, doors_of, import_door, notes

SSH = "-s %IP% -p tcp --dport 22 -j ACCEPT"
RICH = 'rule family="ipv4" source address="%IP%"'

OPENS = [
    ("/sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", "22/tcp"),
    ("/usr/sbin/iptables -I INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", "22/tcp"),
    ("iptables -I INPUT 1 -s %IP% -p tcp --dport 22 -j ACCEPT", "22/tcp"),
    ("sudo iptables -I INPUT 1 -s %IP% -p tcp --dport ssh -j ACCEPT", "22/tcp"),
    ("sudo -n /sbin/iptables -w 5 -I INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", "22/tcp"),
    ("iptables -A INPUT -p tcp -s %IP% --dport 22 -j ACCEPT", "22/tcp"),
    ("iptables -A INPUT -p udp -s %IP%/32 --dport 1194 -j ACCEPT", "1194/udp"),
    ("iptables --append INPUT --source %IP% --protocol tcp --destination-port 22 --jump ACCEPT", "22/tcp"),
    ("iptables -A INPUT -s %IP% -ptcp --dport=22 -jACCEPT", "22/tcp"),
    ("iptables -t filter -A INPUT -s %IP% -p TCP -m tcp --dport 22 -j ACCEPT", "22/tcp"),
    ("iptables -A INPUT -s %IP% -p tcp -m multiport --dports 80,https -j ACCEPT", "80/tcp 443/tcp"),
    ("iptables -A INPUT -s %IP% -p tcp --dport 6000:6002 -j ACCEPT", "6000/tcp 6001/tcp 6002/tcp"),
    ("ip6tables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", "22/tcp"),
    ("iptables-legacy -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", "22/tcp"),
    ('iptables -A INPUT -s "%IP%" -p tcp --dport 22 -j ACCEPT -m comment --comment "let me in"', "22/tcp"),
    ("iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT # let me in", "22/tcp"),
    ("iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT;", "22/tcp"),
    (f"iptables -A INPUT {SSH} && iptables -A INPUT {SSH.replace('22', '443')}", "22/tcp 443/tcp"),
    (f"/sbin/iptables -I INPUT {SSH}; /sbin/ip6tables -I INPUT {SSH}", "22/tcp"),
    ("/bin/sh -c 'iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT'", "22/tcp"),
    ("ufw allow from %IP% to any port 22 proto tcp", "22/tcp"),
    ("ufw allow from %IP% to any port 22", "22/tcp 22/udp"),
    ("ufw allow proto tcp from %IP% to any port 22", "22/tcp"),
    ("sudo ufw insert 1 allow from %IP% to any port 22 comment knockd", "22/tcp 22/udp"),
    ("/usr/sbin/ufw --force allow from %IP% to any port ssh", "22/tcp"),
    ("ufw allow from %IP% to any app OpenSSH", "22/tcp"),
    ("ufw allow in on eth0 from %IP% to any port 80,443 proto tcp", "80/tcp 443/tcp"),
    (f'firewall-cmd --add-rich-rule=\'{RICH} port port="22" protocol="tcp" accept\'', "22/tcp"),
    (f'/bin/firewall-cmd --zone=public --add-rich-rule \'{RICH} port protocol="tcp" port="22" accept\'', "22/tcp"),
    (f'/bin/firewall-cmd --zone=internal --add-rich-rule="{RICH} service name="ssh" accept"', "22/tcp"),
    (f"firewall-cmd --permanent --add-rich-rule='{RICH} service name=ssh accept' && firewall-cmd --reload", "22/tcp"),
    ("nft add rule inet filter input ip saddr %IP% tcp dport 22 accept", "22/tcp"),
    ("/usr/sbin/nft insert rule inet filter input tcp dport 22 ip saddr %IP% counter accept", "22/tcp"),
    ("nft add rule filter INPUT ip saddr %IP% tcp dport { 22, 80 } ct state new accept", "22/tcp 80/tcp"),
    ("nft 'add rule inet filter input ip saddr %IP% udp dport {51820} accept'", "51820/udp"),
    ('nft add rule inet filter input ip saddr %IP% tcp dport ssh accept comment "knockd ssh"', "22/tcp"),
]

CLOSES = [
    "/sbin/iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT",
    "/usr/sbin/iptables -D INPUT -s %IP% -p tcp --dport ssh -j ACCEPT",
    "iptables --delete INPUT -p tcp -s %IP% --dport 22 -j ACCEPT",
    "ip6tables -D INPUT -s %IP% -p tcp --syn --dport 22 -j ACCEPT",
    "ufw delete allow from %IP% to any port 22 proto tcp",
    "sudo ufw --force delete allow from %IP% to any port ssh",
    f"firewall-cmd --zone=public --remove-rich-rule='{RICH} port port=22 protocol=tcp accept'",
    "nft delete rule inet filter input ip saddr %IP% tcp dport 22 accept",
]

# Command, what the reason says.
STAYS = [
    ("iptables -A INPUT -p tcp --dport 22 -j ACCEPT", "opens for everybody"),
    ("iptables -D INPUT -p tcp --dport 22 -j ACCEPT", "closes for everybody"),
    ("iptables -A INPUT -s %IP% -j ACCEPT", "names no port, so it opens everything"),
    ("iptables -A INPUT -s %IP% -p tcp -j ACCEPT", "names no port, so it opens everything"),
    ("iptables -A INPUT -s %IP% --dport 22 -j ACCEPT", "no -p"),
    ("iptables -A INPUT -s 192.0.2.7 -p tcp --dport 22 -j ACCEPT", "source is '192.0.2.7'"),
    ("iptables -A INPUT -s %IP%/24 -p tcp --dport 22 -j ACCEPT", "source is '%IP%/24'"),
    ("iptables -A INPUT -s %IP% -p tcp --dport 22 -j LOG_ACCEPT", "target is LOG_ACCEPT"),
    ("iptables -A INPUT -s %IP% -p tcp --dport 22 -j REJECT", "target is REJECT"),
    ("iptables -D INPUT -s %IP% -p tcp --dport 22 -j DROP", "target is DROP"),
    ("iptables -A INPUT -s %IP% -p tcp --dport 22", "names no target"),
    ("iptables -P INPUT DROP", "policy"),
    ("iptables -F INPUT", "flushes"),
    ("iptables -F", "flushes"),
    ("iptables -D INPUT 3", "its number"),
    ("iptables -t nat -A PREROUTING -s %IP% -p tcp --dport 22 -j ACCEPT", "table nat"),
    ("iptables -A FORWARD -s %IP% -p tcp --dport 22 -j ACCEPT", "chain FORWARD"),
    ("iptables -A INPUT -s %IP% -p tcp --dport 22 -d 192.0.2.1 -j ACCEPT", "-d"),
    ("iptables -A INPUT ! -s %IP% -p tcp --dport 22 -j ACCEPT", "turns a condition round"),
    ("iptables -A INPUT -s %IP% -p tcp -m limit --limit 3/m --dport 22 -j ACCEPT", "limit"),
    ("iptables -A INPUT -s %IP% -p tcp --dport 22 -m state --state ESTABLISHED -j ACCEPT", "lets no new connection"),
    ("iptables -A INPUT -s %IP% -p icmp --dport 22 -j ACCEPT", "protocol icmp"),
    ("iptables -A INPUT -s %IP% -p tcp --dport mystery -j ACCEPT", "'mystery' is no port"),
    ("iptables -A INPUT -s %IP% -p tcp --dport 1:65535 -j ACCEPT", "too long a range"),
    # What knockd passes on, and iptables refuses: never guessed into a hole.
    ("iptables -A INPUT -s %IP -p tcp --dport 22 -j ACCEPT", "%IP looks wrong"),
    ("iptables -A INPUT -s %%IP%% -p tcp --dport 22 -j ACCEPT", "looks wrong"),
    ("iptables -A INPUT -s IP% -p tcp --dport 22 -j ACCEPT", "looks wrong"),
    ("iptables -A INPUT -s %IP% -p tcp \u2013dport 22 -j ACCEPT", "dash"),
    ("iptables -A INPUT -s %IP% -p tcp -dport 22 -j ACCEPT", "wants --dport"),
    ("iptables -A input -s %IP% -p tcp --dport 22 -j ACCEPT", "'input' looks wrong"),
    ("iptables -A INPUT -s %IP% -p tcp --dport 22 -j accept", "-j accept looks wrong"),
    ("ufw allow 22/tcp", "everybody"),
    ("ufw allow ssh", "everybody"),
    ("ufw allow OpenSSH", "everybody"),
    ("ufw delete allow 22/tcp", "closes for everybody"),
    ("ufw allow from %IP%", "no port"),
    ("ufw insert 1 deny from %IP% to any port 22", "ufw deny"),
    ("ufw limit from %IP% to any port 22", "ufw limit"),
    ("ufw delete 3", "ufw 3"),
    ("ufw enable", "ufw enable"),
    ("ufw", "ufw "),
    ("firewall-cmd --add-port=22/tcp", "for everybody"),
    ("firewall-cmd --zone=public --add-service=ssh", "for everybody"),
    ("firewall-cmd --zone=trusted --add-source=%IP%", "zone allows"),
    ("firewall-cmd --reload", "reloads"),
    (f"firewall-cmd --add-rich-rule='{RICH} accept'", "no port"),
    (f"firewall-cmd --add-rich-rule='{RICH} port port=22 protocol=tcp reject'", "reject"),
    ("firewall-cmd --add-rich-rule='rule port port=22 protocol=tcp accept'", "everybody"),
    ("nft add element inet filter knock { %IP% }", "set"),
    ("nft add element inet filter knock { %IP% timeout 60s }", "set"),
    ("nft delete rule inet filter input handle 12", "handle"),
    ("nft flush chain inet filter input", "neither"),
    ("nft add rule inet filter input tcp dport 22 accept", "everybody"),
    ("nft add rule inet filter input ip saddr %IP% accept", "no port"),
    ("nft add rule inet filter input ip saddr %IP% tcp dport 22 drop", "'drop'"),
    ("nft add rule inet filter forward ip saddr %IP% tcp dport 22 accept", "chain forward"),
    ("ipset add knockers %IP%", ""),
    ("pfctl -t knockers -T add %IP%", ""),
    ("/opt/knock/open.sh %IP%", ""),
    ("systemctl start sshd", ""),
    # Not every part is an opening.
    ("iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT && /usr/local/bin/tell %IP%", "different things"),
    ("iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT || true", ""),
    ("iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT > /dev/null", ""),
    ("iptables -A INPUT -s $(echo %IP%) -p tcp --dport 22 -j ACCEPT", ""),
]


@pytest.mark.parametrize(("command", "ports"), OPENS)
def test_a_command_that_opens_becomes_a_hole(command: str, ports: str) -> None:
    made = import_door(f"command = {command}")
    assert made["open"] == ports.split()
    assert "start_command" not in made


@pytest.mark.parametrize("command", CLOSES)
def test_a_command_that_closes_is_known_as_one(command: str) -> None:
    action = recognise(command)
    assert action.deed == "closes", action.reason
    assert {(port.number, port.protocol) for port in action.ports} == {(22, "tcp")}


@pytest.mark.parametrize(("command", "reason"), STAYS)
def test_everything_else_stays_a_command_and_says_why(command: str, reason: str) -> None:
    conversion = convert(config(door(f"command = {command}")))
    [made] = doors_of(conversion).values()
    assert "open" not in made
    assert made["start_command"]
    assert any(line.startswith("7 kept: command: stays a command") and reason in line for line in notes(conversion))


@pytest.mark.parametrize(
    ("condition", "remark"),
    [
        ("-i eth0", "-i eth0 goes"),
        ("-m state --state NEW", "-m state goes"),
        ("-m conntrack --ctstate NEW,ESTABLISHED", "-m conntrack goes"),
        ("-m comment --comment knock", "-m comment goes"),
        ("--syn", "--syn goes"),
    ],
)
def test_what_a_hole_does_not_need_is_reported(condition: str, remark: str) -> None:
    text = f"command = iptables -A INPUT -s %IP% -p tcp {condition} --dport 22 -j ACCEPT"
    conversion = convert(config(door(text)))
    assert doors_of(conversion)["ssh"]["open"] == ["22/tcp"]
    assert any(line.startswith(f"7 changed: {remark}") for line in notes(conversion))


@pytest.mark.parametrize("chain", ["knock_hidden", "TCP"])
def test_a_chain_of_their_own_is_reported(chain: str) -> None:
    conversion = convert(config(door(f"command = iptables -A {chain} -s %IP% -p tcp --dport 22 -j ACCEPT")))
    assert doors_of(conversion)["ssh"]["open"] == ["22/tcp"]
    assert any(f"the chain {chain} goes" in line for line in notes(conversion))


def test_a_kept_firewall_command_warns_of_two_rulesets() -> None:
    conversion = convert(config(door("command = iptables -A INPUT -p tcp --dport 22 -j ACCEPT")))
    assert any("7 unwise" in line and "must pass nfknock's too" in line for line in notes(conversion))
    assert "# line 7, kept: command: stays a command" in conversion.text


def test_words_become_arguments() -> None:
    assert import_door("command = /bin/tell 'two words' %IP%")["start_command"] == ["/bin/tell", "two words", "%IP%"]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("echo %IP% >> /tmp/log", "`>>`"),
        ("a %IP%; b", "several commands"),
        ("a && b", "several commands"),
        ("a | b", "`|`"),
        ("a || b", "`||`"),
        ("a &", "`&`"),
        ("a $(b)", "`$(`"),
        ("a `b`", "```"),
        ("a $HOME", "`$H`"),
        ("X=1 foo", "`X=1`"),
        ("cd /tmp", "`cd`"),
        ("ls *.conf", "pattern"),
        ("a 'b", "never closed"),
        ("a # b", "comment"),
        ("# b", "no command"),
    ],
)
def test_what_needs_a_shell_gets_one_and_says_so(command: str, why: str) -> None:
    conversion = convert(config(door(f"command = {command}")))
    script = command.replace("%IP%", '"$1"')
    assert doors_of(conversion)["ssh"]["start_command"] == ["/bin/sh", "-c", script, "sh", "%IP%"]
    assert any(why in line and '"$1"' in line for line in notes(conversion))


@pytest.mark.parametrize("shell", ["sh -c", "/bin/bash -c", "sudo sh -ec"])
def test_a_shell_that_is_called_already_gets_the_address_as_an_argument(shell: str) -> None:
    command = understand(1, "command", f"{shell} 'echo %IP% | wall'")
    assert command.arguments == (*shell.split(), 'echo "$1" | wall', "sh", "%IP%")


def test_a_time_limit_of_firewalld_is_an_open_timeout() -> None:
    """`--timeout=60` closes by itself, as a hole does."""
    made = import_door(f"command = firewall-cmd --add-rich-rule='{RICH} service name=ssh accept' --timeout=1m")
    assert made["open_timeout"] == 60
