# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_reconciled_global_optspecs
    string join \n config= set= no-color h/help V/version
end

function __fish_reconciled_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_reconciled_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_reconciled_using_subcommand
    set -l cmd (__fish_reconciled_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c reconciled -n "__fish_reconciled_needs_command" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_needs_command" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_needs_command" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c reconciled -n "__fish_reconciled_needs_command" -s V -l version -d 'Print version'
complete -c reconciled -n "__fish_reconciled_needs_command" -f -a "run" -d 'The daemon: watches the source and keeps Vercel equal to it, until SIGTERM or Ctrl-C'
complete -c reconciled -n "__fish_reconciled_needs_command" -f -a "once" -d 'Reads the source once and delivers until nothing is left to send; for cron and Kubernetes jobs'
complete -c reconciled -n "__fish_reconciled_needs_command" -f -a "check" -d 'Is this configuration ready? Checks it as a whole, then the source, the state and Vercel'
complete -c reconciled -n "__fish_reconciled_needs_command" -f -a "plan" -d 'What would be sent now, per resource and field, as a diff'
complete -c reconciled -n "__fish_reconciled_needs_command" -f -a "status" -d 'Do both sides agree? One screen, the verdict first, the most useful command last'
complete -c reconciled -n "__fish_reconciled_needs_command" -f -a "health" -d 'Does the daemon live? Asks /healthz at http.listen; exits with 0 if it does, with 1 if not'
complete -c reconciled -n "__fish_reconciled_needs_command" -f -a "explain" -d 'What happened to a resource, field by field and event by event?'
complete -c reconciled -n "__fish_reconciled_needs_command" -f -a "outbox" -d 'Lists entries, shows one, tries again, lets go what the guard holds, gives up'
complete -c reconciled -n "__fish_reconciled_needs_command" -f -a "installation" -d 'Lists installations, pauses one, resumes one'
complete -c reconciled -n "__fish_reconciled_needs_command" -f -a "baseline" -d 'Takes what the source says now as what Vercel has, or compares the two first'
complete -c reconciled -n "__fish_reconciled_needs_command" -f -a "drift" -d 'Compares what Vercel shows with what it last acknowledged; sends nothing but GET requests'
complete -c reconciled -n "__fish_reconciled_needs_command" -f -a "simulate" -d 'A local stand-in for Vercel\'s Marketplace API, with faults on command; for tests and CI without an account'
complete -c reconciled -n "__fish_reconciled_needs_command" -f -a "demo" -d 'Watch it work: an embedded provider database, the daemon and a simulated Vercel in one process'
complete -c reconciled -n "__fish_reconciled_using_subcommand run" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand run" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand run" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c reconciled -n "__fish_reconciled_using_subcommand once" -l timeout -d 'Deliver for at most this long, counted from when the source was read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand once" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand once" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand once" -l sweep -d 'Read every row, not only what changed since the last run'
complete -c reconciled -n "__fish_reconciled_using_subcommand once" -l json -d 'The report as JSON'
complete -c reconciled -n "__fish_reconciled_using_subcommand once" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand once" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c reconciled -n "__fish_reconciled_using_subcommand check" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand check" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand check" -l json -d 'The report as JSON'
complete -c reconciled -n "__fish_reconciled_using_subcommand check" -l offline -d 'Check the configuration alone; connect to nothing'
complete -c reconciled -n "__fish_reconciled_using_subcommand check" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c reconciled -n "__fish_reconciled_using_subcommand plan" -l limit -d 'Resources to show; the rest is counted. 0: all [default: 100; with --json or --held all]' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand plan" -l installation -d 'Only resources of this installation' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand plan" -l field -d 'Only this field, by its name on the wire: secrets, status, billingPlan, name, notification, metadata, ownership or extras' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand plan" -l state -d 'Only what would be sent now, is waiting, held, dead or discarded; may be repeated' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand plan" -l since -d 'Only what was changed (by its cursor) or found within this time: 1h' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand plan" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand plan" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand plan" -l json -d 'The plan as JSON, whole unless --limit says otherwise'
complete -c reconciled -n "__fish_reconciled_using_subcommand plan" -l exit-code -d 'Exit with 2 if anything differs'
complete -c reconciled -n "__fish_reconciled_using_subcommand plan" -l held -d 'All that the guard keeps back, instead of what the source says now'
complete -c reconciled -n "__fish_reconciled_using_subcommand plan" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand plan" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c reconciled -n "__fish_reconciled_using_subcommand status" -l installation -d 'Of installations and unusable rows only those of this one; the verdict stays that of the whole' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand status" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand status" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand status" -l json -d 'The answer as JSON, with every installation'
complete -c reconciled -n "__fish_reconciled_using_subcommand status" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand status" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c reconciled -n "__fish_reconciled_using_subcommand health" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand health" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand health" -l ready -d 'Asks /readyz instead of /healthz'
complete -c reconciled -n "__fish_reconciled_using_subcommand health" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand health" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c reconciled -n "__fish_reconciled_using_subcommand explain" -l limit -d 'The newest closed entries, attempts and acts to show, so many of each' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand explain" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand explain" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand explain" -l json -d 'The story as JSON'
complete -c reconciled -n "__fish_reconciled_using_subcommand explain" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand explain" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and not __fish_seen_subcommand_from list show retry discard release" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and not __fish_seen_subcommand_from list show retry discard release" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and not __fish_seen_subcommand_from list show retry discard release" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and not __fish_seen_subcommand_from list show retry discard release" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and not __fish_seen_subcommand_from list show retry discard release" -f -a "list" -d 'Entries by number, the oldest first: what each would send, and what it waits for'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and not __fish_seen_subcommand_from list show retry discard release" -f -a "show" -d 'One entry: both sides field by field, its attempts, why it is where it is'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and not __fish_seen_subcommand_from list show retry discard release" -f -a "retry" -d 'Tries entries again at once, dead ones too, and forgets what made them wait or die'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and not __fish_seen_subcommand_from list show retry discard release" -f -a "discard" -d 'Closes entries for good: what they wanted is not sent until the source changes it'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and not __fish_seen_subcommand_from list show retry discard release" -f -a "release" -d 'Lets entries go that the guard holds; they are sent at once'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from list" -l state -d 'In this state: waiting, held, dead, delivered, withdrawn or discarded; may be repeated [default: the open ones]' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from list" -l installation -d 'Of this installation' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from list" -l field -d 'With this field to send, sent or rejected: secrets, status, billingPlan, name, notification, metadata, ownership or extras' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from list" -l since -d 'Found within this time: 1h' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from list" -l limit -d 'Entries to show; the rest is counted. 0: all' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from list" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from list" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from list" -l json -d 'The list as JSON'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from list" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from show" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from show" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from show" -l json -d 'The entry as JSON'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from show" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from retry" -l state -d 'Those in this state: waiting, held or dead; may be repeated' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from retry" -l installation -d 'Those of this installation' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from retry" -l field -d 'Those with this field to send or rejected' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from retry" -l since -d 'Those found within this time: 1h' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from retry" -l as -d 'Who does this, for the history [default: $SUDO_USER, else $USER, else the user\'s number]' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from retry" -l reason -d 'Why; the history keeps it' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from retry" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from retry" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from retry" -l dry-run -d 'Show what would be done; change nothing'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from retry" -l yes -d 'Do not ask; needed with filters where nobody can be asked'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from retry" -l json -d 'The answer as JSON'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from retry" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from retry" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from discard" -l state -d 'Those in this state: waiting, held or dead; may be repeated' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from discard" -l installation -d 'Those of this installation' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from discard" -l field -d 'Those with this field to send or rejected' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from discard" -l since -d 'Those found within this time: 1h' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from discard" -l as -d 'Who does this, for the history [default: $SUDO_USER, else $USER, else the user\'s number]' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from discard" -l reason -d 'Why; the history keeps it' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from discard" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from discard" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from discard" -l dry-run -d 'Show what would be done; change nothing'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from discard" -l yes -d 'Do not ask; needed with filters where nobody can be asked'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from discard" -l json -d 'The answer as JSON'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from discard" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from discard" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from release" -l state -d 'Those in this state: waiting, held or dead; may be repeated' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from release" -l installation -d 'Those of this installation' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from release" -l field -d 'Those with this field to send or rejected' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from release" -l since -d 'Those found within this time: 1h' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from release" -l as -d 'Who does this, for the history [default: $SUDO_USER, else $USER, else the user\'s number]' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from release" -l reason -d 'Why; the history keeps it' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from release" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from release" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from release" -l dry-run -d 'Show what would be done; change nothing'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from release" -l yes -d 'Do not ask; needed with filters where nobody can be asked'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from release" -l json -d 'The answer as JSON'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from release" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand outbox; and __fish_seen_subcommand_from release" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and not __fish_seen_subcommand_from list pause resume" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and not __fish_seen_subcommand_from list pause resume" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and not __fish_seen_subcommand_from list pause resume" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and not __fish_seen_subcommand_from list pause resume" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and not __fish_seen_subcommand_from list pause resume" -f -a "list" -d 'One line per installation: its state, its resources and what is open'
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and not __fish_seen_subcommand_from list pause resume" -f -a "pause" -d 'Sends nothing for an installation until it is resumed or the time is over'
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and not __fish_seen_subcommand_from list pause resume" -f -a "resume" -d 'Ends a pause that a person made; what waits is sent at once'
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and __fish_seen_subcommand_from list" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and __fish_seen_subcommand_from list" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and __fish_seen_subcommand_from list" -l json -d 'The list as JSON'
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and __fish_seen_subcommand_from list" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and __fish_seen_subcommand_from pause" -l reason -d 'Why; shown wherever the pause is' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and __fish_seen_subcommand_from pause" -l for -d 'End by itself after this long: from a second to ten years' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and __fish_seen_subcommand_from pause" -l as -d 'Who does this, for the history [default: $SUDO_USER, else $USER, else the user\'s number]' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and __fish_seen_subcommand_from pause" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and __fish_seen_subcommand_from pause" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and __fish_seen_subcommand_from pause" -l unknown -d 'Also if the state knows no such installation'
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and __fish_seen_subcommand_from pause" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and __fish_seen_subcommand_from pause" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and __fish_seen_subcommand_from resume" -l reason -d 'Why; the history keeps it' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and __fish_seen_subcommand_from resume" -l as -d 'Who does this, for the history [default: $SUDO_USER, else $USER, else the user\'s number]' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and __fish_seen_subcommand_from resume" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and __fish_seen_subcommand_from resume" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and __fish_seen_subcommand_from resume" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand installation; and __fish_seen_subcommand_from resume" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and not __fish_seen_subcommand_from adopt compare" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and not __fish_seen_subcommand_from adopt compare" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and not __fish_seen_subcommand_from adopt compare" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and not __fish_seen_subcommand_from adopt compare" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and not __fish_seen_subcommand_from adopt compare" -f -a "adopt" -d 'Take every row as acknowledged: nothing of it is sent until it changes. Right only if you know that Vercel has it'
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and not __fish_seen_subcommand_from adopt compare" -f -a "compare" -d 'Ask Vercel about each resource before its first push: only what differs or cannot be seen is sent by the next run'
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and __fish_seen_subcommand_from adopt" -l installation -d 'Only resources of this installation' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and __fish_seen_subcommand_from adopt" -l reason -d 'Why; the history keeps it' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and __fish_seen_subcommand_from adopt" -l as -d 'Who does this, for the history [default: $SUDO_USER, else $USER, else the user\'s number]' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and __fish_seen_subcommand_from adopt" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and __fish_seen_subcommand_from adopt" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and __fish_seen_subcommand_from adopt" -l all -d 'Also resources of which Vercel has acknowledged something'
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and __fish_seen_subcommand_from adopt" -l json -d 'The report as JSON'
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and __fish_seen_subcommand_from adopt" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and __fish_seen_subcommand_from adopt" -s h -l help -d 'Print help'
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and __fish_seen_subcommand_from compare" -l installation -d 'Only resources of this installation' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and __fish_seen_subcommand_from compare" -l reason -d 'Why; the history keeps it' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and __fish_seen_subcommand_from compare" -l as -d 'Who does this, for the history [default: $SUDO_USER, else $USER, else the user\'s number]' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and __fish_seen_subcommand_from compare" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and __fish_seen_subcommand_from compare" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and __fish_seen_subcommand_from compare" -l all -d 'Also resources of which Vercel has acknowledged something'
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and __fish_seen_subcommand_from compare" -l json -d 'The report as JSON'
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and __fish_seen_subcommand_from compare" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand baseline; and __fish_seen_subcommand_from compare" -s h -l help -d 'Print help'
complete -c reconciled -n "__fish_reconciled_using_subcommand drift" -l installation -d 'Only resources of this installation' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand drift" -l field -d 'Only this field: name, status, metadata, notification or billingPlan' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand drift" -l reason -d 'Why; the history keeps it' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand drift" -l as -d 'Who does this, for the history [default: $SUDO_USER, else $USER, else the user\'s number]' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand drift" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand drift" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand drift" -l fix -d 'Send the provider\'s side of what differs again'
complete -c reconciled -n "__fish_reconciled_using_subcommand drift" -l json -d 'The findings as JSON'
complete -c reconciled -n "__fish_reconciled_using_subcommand drift" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand drift" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c reconciled -n "__fish_reconciled_using_subcommand simulate" -l listen -d 'Where to listen; port 0 takes a free one' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand simulate" -l seed -d 'The seed of the weather: equal seeds give equal faults' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand simulate" -l weather -d 'Faults by chance' -r -f -a "calm\t'Every request is served'
rough\t'About one request in six fails'
storm\t'About every second request fails, some answers are lost, some are applied late'"
complete -c reconciled -n "__fish_reconciled_using_subcommand simulate" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand simulate" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand simulate" -l require-known -d 'Answer 404 for installations and resources that were not created through /_simulator'
complete -c reconciled -n "__fish_reconciled_using_subcommand simulate" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand simulate" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c reconciled -n "__fish_reconciled_using_subcommand demo" -l seed -d 'Decides names, secrets and which rows change [default: another one each time]' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand demo" -l config -d 'Configuration file [default: /etc/reconciled/reconciled.toml, then ./reconciled.toml]' -r -F
complete -c reconciled -n "__fish_reconciled_using_subcommand demo" -l set -d 'Sets one key, above the file and the environment: --set log.filter=debug. May be repeated; not for passwords, which everyone on the machine could read' -r
complete -c reconciled -n "__fish_reconciled_using_subcommand demo" -l fast -d 'Without the pauses that let a person follow'
complete -c reconciled -n "__fish_reconciled_using_subcommand demo" -l no-color -d 'No colour, also at a terminal; NO_COLOR and TERM=dumb do the same'
complete -c reconciled -n "__fish_reconciled_using_subcommand demo" -s h -l help -d 'Print help (see more with \'--help\')'
