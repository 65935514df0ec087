// Command edgeproxy is a layer-4 load balancer for Linux.
//
// A command ends with 0 when all is well, 1 when the configuration or the
// operation failed, and 2 when it was called wrongly.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"edgeproxy/internal/version"
)

// Exit codes; scripts and service managers depend on them.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// errReported ends a command with [exitFailed] when it has told the reason
// already, in more than one line.
var errReported = errors.New("reported")

// usageError marks an error as the caller's wrong use of the command line.
type usageError struct {
	err error
	cmd *cobra.Command // whose help to point at
}

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(cmd *cobra.Command, format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...), cmd}
}

func main() {
	os.Exit(execute(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// execute runs one command line and returns the exit code.
func execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errReported):
		return exitFailed
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "edgeproxy: %v\n", err)
		if usage.cmd != nil {
			cmd = usage.cmd
		}
		fmt.Fprintf(stderr, "Run '%s --help' for usage.\n", cmd.CommandPath())
		return exitUsage
	default:
		fmt.Fprintf(stderr, "edgeproxy: %v\n", err)
		return exitFailed
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "edgeproxy",
		Short: "A layer-4 load balancer: one event loop per core, configured in HCL",
		Long: `edgeproxy accepts TCP connections, chooses a healthy server for each, and moves
the bytes between them.

'edgeproxy demo' shows it at work without a single file; 'edgeproxy run -c FILE'
is the daemon.`,
		Version:       versionLine(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return unknownCommand(cmd, args[0])
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s\n\n%s\n", cmd.Long, cmd.UsageString())
			return usagef(cmd, "a command is missing")
		},
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(
		newRunCommand(),
		newDemoCommand(),
		newCheckCommand(),
		newExplainCommand(),
		newFmtCommand(),
		newReloadCommand(),
		newVersionCommand(),
	)
	return root
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version and what it was built with",
		Args:  noArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.OutOrStdout(), versionLine())
		},
	}
}

func versionLine() string {
	return fmt.Sprintf("edgeproxy %s (%s, %s)", version.String(), version.Go(), version.Platform())
}
