# Tells OpenNebula's network drivers, which load every file of this directory, about guests of ocivisor:
# the host's end of a NIC is called <deploy id>-<NIC id>, and its bandwidth is changed by `ocivisor nic limit`.
# Without it they would ask virsh, find nothing, and write rules for an interface without a name.

require 'open3'

module VNMMAD

    module VNMNetwork

        # Names of virtual machine drivers (NAME in VM_MAD of oned.conf) that are ocivisor and nothing else.
        OCIVISOR_NAMES = %w[ocivisor]

        # What a NIC of one of our guests can do.
        module Ocivisor

            NOT_FOUND = 3

            def get_info(_vm)
                nil
            end

            # Before a VM is deployed it has no deploy id and its NICs have no interface.
            def get_tap(vm)
                self[:tap] = "#{vm.deploy_id}-#{self[:nic_id]}" if vm.deploy_id
                self
            end

            # Bounds of a VM that does not run here come with its next deployment.
            def set_qos(deploy_id)
                status, text = ocivisor_limit(deploy_id)
                return if status == 0 || status == NOT_FOUND

                raise "Error updating QoS values: #{text}"
            end

            private

            # Exit code and messages. The values are a tenant's: words of an argument list, never of a shell.
            def ocivisor_limit(deploy_id)
                program = ENV['OCIVISOR_BIN'] || '/usr/bin/ocivisor'
                words   = [program, 'nic', 'limit', '--inbound', ocivisor_rate(:inbound),
                           '--outbound', ocivisor_rate(:outbound),
                           '--', deploy_id.to_s, "#{deploy_id}-#{self[:nic_id]}"]

                text, status = Open3.capture2e(*words, :stdin_data => '')
                [status.exitstatus, text.strip]
            end

            # AVERAGE[:PEAK[:BURST]] in bytes of kB/s, kB/s and KiB; none without an average.
            def ocivisor_rate(direction)
                average, peak, burst = %w[avg_bw peak_bw peak_kb].map do |key|
                    number = Integer(self[:"#{direction}_#{key}"].to_s, 10, :exception => false)
                    number if number && number > 0
                end

                return 'none' unless average

                peak = nil if peak && peak < average
                [average * 1000, peak && peak * 1000, burst && burst * 1024].join(':').sub(/:+\z/, '')
            end

        end

        # A NIC of ours. Drivers since OpenNebula 7.0 ask any NIC for its VLANs, by what their class Nic has; 6.10 has
        # neither the questions nor the class.
        class NicOcivisor < (const_defined?(:Nic, false) ? self::Nic : Hash)

            include Ocivisor

            def initialize
                super(nil)
            end

        end

        OCIVISOR_NAMES.each {|name| HYPERVISORS[name] = NicOcivisor }

        # Where we are registered by the name of OpenNebula's own driver for containers. That one may be in use
        # as well: whose guest it is, our daemon knows.
        if HYPERVISORS['lxc']

            class NicOcivisorOrLXC < HYPERVISORS['lxc']

                include Ocivisor

                def set_qos(deploy_id)
                    super
                rescue Errno::ENOENT
                    # No ocivisor on this host.
                    nil
                end

            end

            HYPERVISORS['lxc'] = NicOcivisorOrLXC

        end

    end

end
